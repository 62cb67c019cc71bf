"""`marvel ...`: parse, call, print; what is heavy is imported by the command that needs it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg
from tyro.extras import SubcommandApp

from marvel_jax.cli_bench import bench
from marvel_jax.cli_data import data
from marvel_jax.cli_errors import explain, tell
from marvel_jax.cli_flags import Json
from marvel_jax.cli_plan import plan
from marvel_jax.cli_retrieval import convert, encode, evaluate, mine, report
from marvel_jax.cli_run import run, table
from marvel_jax.cli_search import index, search
from marvel_jax.cli_serving import serve
from marvel_jax.cli_studies import study
from marvel_jax.cli_training import export, import_model, train
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import Outcome

app = SubcommandApp()


@app.command
def quickstart(
    *,
    workdir: Annotated[Path, arg(help="Folder of the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, arg(help="Seeds the corpus's split, weights, data order.")] = 0,
    short: Annotated[bool, arg(help="A tiny run of every stage, to see that all works.")] = False,
    json: Json = False,
) -> Outcome:
    """Corpus, training, encoding, ScaNN, evaluation and a report, end to end on real pictures.

    Run it again after an interruption and it goes on where it stopped.
    """
    from marvel_jax.recipes.quickstart import run_quickstart

    return run_quickstart(workdir, seed=seed, short=short)


app.command(data, name="data", help="Corpora: build, check, download.")
app.command(name="import")(import_model)
app.command(train)
app.command(export)
app.command(run)
app.command(table)
app.command(plan)
app.command(encode)
app.command(convert)
app.command(index)
app.command(search)
app.command(evaluate)
app.command(report)
app.command(mine)
app.command(study, name="study", help="Trials of a recipe along axes: run, schedule, plan, report.")
app.command(serve)
app.command(
    bench,
    name="bench",
    help="Measures: loss, step, attention, encoding, pictures, search, a whole pool, the server.",
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; exits 0 only if it succeeded, 130 if interrupted, 2 on wrong arguments."""
    args = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in args
    try:
        outcome: Outcome = app.cli(
            prog="marvel",
            description="Universal multimodal retrieval in JAX.",
            args=args,
            config=(FlagCreatePairsOff,),
        )
    except (MarvelError, OSError, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        tell(explained[0], as_json=as_json)
        sys.exit(explained[1])
    except SystemExit as stop:
        if stop.code and as_json:  # tyro has told a person what is wrong with the arguments
            print(json.dumps({"error": "the arguments do not fit: see standard error."}))
        raise
    for line in outcome.lines:
        print(line)
    if as_json:
        print(json.dumps(dict(outcome.facts), ensure_ascii=False))
    sys.exit(outcome.code)


if __name__ == "__main__":
    main()
