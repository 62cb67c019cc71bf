"""What `marvel data emoji | make-mbeir` do."""

from pathlib import Path

from rich.console import Console

from marvel_jax.data import emoji, mbeir_synthetic
from marvel_jax.recipes.outcome import Outcome


def make_mbeir(out: Path, *, size: str, seed: int, with_pairs: bool) -> Outcome:
    """Writes a synthetic M-BEIR."""
    wanted = mbeir_synthetic.read_size(size)
    console = Console(stderr=True)
    with console.status("making sets") as status:

        def report(stage: str, done: int, total: int) -> None:
            status.update(f"{stage} {done:,}/{total:,}")

        built = mbeir_synthetic.build(
            out, size=wanted, seed=seed, with_pairs=with_pairs, progress=report
        )
    manifest = built.manifest
    facts = {
        "out": str(out),
        "training_queries": manifest["union_train"],
        "pools": manifest["pools"],
        "pairs": manifest.get("pairs", {}),
    }
    made = (
        f"{len(manifest['sets'])} sets, {manifest['union_train']:,} training queries, "
        f"{manifest['pools']['test']:,} candidates in the global test pool"
    )
    lines = [
        made,
        f"{out}: M-BEIR layout, tokenizer/, manifest.json",
    ]
    if with_pairs:
        lines.append(
            f"{manifest['pairs']['nli']:,} sentence triplets in {mbeir_synthetic.NLI_FILE}, "
            f"{manifest['pairs']['captions']:,} captions in {mbeir_synthetic.CAPTIONS_FILE}"
        )
    return Outcome(facts, lines)


def build_emoji(out: Path, *, seed: int) -> Outcome:
    """Builds the emoji corpus."""
    console = Console(stderr=True)
    with console.status("drawing emoji") as status:

        def report(stage: str, done: int, total: int) -> None:
            status.update(f"{stage} {done:,}/{total:,}")

        built = emoji.build(out, seed=seed, progress=report)
    counted = built.manifest["emoji"]
    queries = sum(built.manifest["training_queries"].values())
    facts = {"out": str(out), "emoji": counted["drawn"], "training_queries": queries}
    undrawn = (
        f"not drawn: {counted['without_glyph']} without a glyph in the font, "
        f"{counted['falling_apart']} that fall apart into several"
    )
    return Outcome(
        facts,
        [
            f"{counted['drawn']:,} emoji drawn, {queries:,} training queries",
            undrawn,
            f"{out}: M-BEIR layout, tokenizer/, tfds/, manifest.json",
        ],
    )
