"""What the tests of `marvel evaluate` ask for."""

from marvel_jax.recipes.evaluate_command import evaluate_model, with_reranker

TOP = 5
WHOLE = {"all_instructions": True, "held_out": ("task4", "emoji_task8"), "fit_split": "val"}


def evaluate(model, corpus, workdir, *, reranker=None, scann=False, **options):
    asked = {"top": TOP, "weights": None, "fit_split": None, "prompt": None}
    asked |= {name: options.pop(name) for name in list(options) if name in asked}
    chosen = with_reranker(None if reranker is None else str(reranker), **asked)
    given = {"seed": 0, **options}
    return evaluate_model(
        str(model), data=corpus, workdir=workdir, scann=scann, reranker=chosen, **given
    )
