"""Model size x data: what is a better use of the same compute?

marvel study run configs/studies/model_data.py --workdir runs/studies
marvel study report runs/studies/model_data

Every trial is a whole training from scratch, its learning rate down to zero at its end: a width,
and as many steps as it can make of some compute. So the trials of one compute are an iso-FLOP
curve. About half an hour on two idle cores, with a process for each.
"""

from marvel_jax.recipes.emoji import architecture, learning_rate
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Train
from marvel_jax.studies import emoji
from marvel_jax.studies.axes import Axis, Point
from marvel_jax.studies.study import Metric, Size, Study
from marvel_jax.studies.trial import Value

TINY = 5.3e8  # operations; a step or two


def width(value: Value) -> tuple[str, ...]:
    """Both towers in proportion; a wider one learns at a lower rate."""
    made, model = architecture(int(value)), "train.config.model.scratch"
    return (
        f"{model}.text.hidden_size={made.text.hidden_size}",
        f"{model}.text.intermediate_size={made.text.intermediate_size}",
        f"{model}.text.num_attention_heads={made.text.num_attention_heads}",
        f"{model}.text.num_key_value_heads={made.text.num_key_value_heads}",
        f"{model}.text.mrope_section={made.text.mrope_section}",
        f"{model}.vision.embed_dim={made.vision.embed_dim}",
        f"{model}.vision.num_heads={made.vision.num_heads}",
        f"train.config.optimizer.learning_rate={learning_rate(int(value))}",
    )


def tiny_width(value: Value) -> tuple[str, ...]:
    """Of the tiny model, whose heads are narrower."""
    model = "train.config.model.scratch.text"
    return (f"{model}.hidden_size={value}", f"{model}.num_attention_heads={int(value) // 8}")


def make(size: Size, *, width: Axis, computes: tuple[float, ...], seeds: tuple[int, ...]) -> Study:
    """The study at a size."""
    base = Recipe(
        (
            emoji.corpus(size),
            Train("train", emoji.training(size, steps=1)),
            Evaluate("evaluate", "train.model", emoji.CORPUS),
        )
    )

    def steps(point: Point) -> tuple[str, ...]:
        """Those that the width makes of the compute."""
        train = base.with_settings(width.settings(point["width"])).stage("train")
        assert isinstance(train, Train)
        return (f"train.config.steps={emoji.steps_for(float(point['compute']), train.config)}",)

    return Study(
        question="What is a better use of the same compute: a larger model, or more data?",
        base=base,
        axes=(width, Axis("compute", (), computes)),
        joint=steps,
        seeds=seeds,
        metrics=(
            Metric("mean local"),
            Metric("hit@5 t->i local"),
            Metric("loss", better="lower"),
        ),
    )


study = make(
    "full",
    width=Axis("width", width, (16, 32, 64, 128, 192)),
    computes=(0.9e12, 1.8e12, 3.6e12),
    seeds=(0, 1),
)
tiny = make(
    "tiny", width=Axis("width", tiny_width, (16, 32)), computes=(TINY, 2 * TINY), seeds=(0,)
)
