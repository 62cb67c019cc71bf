"""What the commands that make a corpus do; `cli.py` parses and prints."""

from pathlib import Path

from rich.console import Console

from marvel_jax.data import mbeir_synthetic
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
