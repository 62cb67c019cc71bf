"""Plans for a person: one in full, or several beside one another."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from marvel_jax.plan.advice import advise
from marvel_jax.plan.planned import Planned

_WIDTH = 180  # of a printed table, whatever the terminal, so that a log reads like the screen


def lines(found: Planned) -> list[str]:
    """One plan in full."""
    what = "pairs" if found.stage == "train" else "items"
    row, settings = found.row, found.settings
    mesh = " ".join(f"{axis}={size}" for axis, size in found.mesh.items())
    machines = f"{found.hosts} host{'s' * (found.hosts > 1)}"
    lengths = f"({found.lengths})"
    rows = f"{row['tokens']:,} tokens, {row['patches']:,} patches, {row['items']} items"
    filled = f"{found.token_fill:.0%} and {found.patch_fill:.0%}"
    made = ", ".join(f"{name}={value}" for name, value in settings.items())
    return [
        f"{found.stage} step for {found.topology}: {found.devices} x {found.device}, {machines}",
        f"mesh {mesh}; {made}; {found.kernel}; loss: {found.loss}",
        f"{found.items:,} {what}: {found.rows} rows a shard of {rows}; filled {filled} {lengths}",
        *_memory(found),
        *_work(found),
        *advise(found),
    ]


def comparison(plans: Sequence[Planned]) -> list[str]:
    """Several plans, one in a line, in the order given."""
    rows = [
        {
            "topology": one.topology,
            "mesh d,f,t": ",".join(str(size) for size in one.mesh.values()),
            "chunk_rows": str(one.settings["chunk_rows"]),
            "remat": one.settings["remat"],
            "items": f"{one.items:,}",
            "rows": str(one.rows),
            "filled": f"{one.token_fill:.0%}",
            "loss": one.loss,
            "GiB": _gib(one.needed_bytes),
            "of": _gib(one.memory_bytes),
            "fits": _answer(one.fits),
            "sent GiB": _gib(sum(size for _, _, size in one.sent)),
            "step s": _number(one.step_seconds),
            "sent s": _number(_sum(one.link_seconds, one.network_seconds)),
            "items/s": _number(one.items_per_second),
            "MFU": "-" if one.mfu is None else f"{one.mfu:.0%}",
            "compile s": f"{one.compile_seconds:.0f}",
        }
        for one in plans
    ]
    told = {one.assumptions for one in plans if one.assumptions}
    return [*_table(rows), *sorted(told)]


def _memory(found: Planned) -> list[str]:
    if found.temporary_bytes is None:  # the compiler has refused it
        temporaries = found.needed_bytes - found.weight_bytes - found.moment_bytes
        temporaries -= found.batch_bytes
        parts = [("temporaries, at least", temporaries)]
    else:
        outputs = (found.output_bytes or 0) - (found.aliased_bytes or 0)
        parts = [
            ("temporaries", found.temporary_bytes),
            ("outputs beside the arguments", outputs),
            ("code", found.code_bytes or 0),
        ]
    rows = [
        {"memory of a device": name, "GiB": f"{size / 2**30:,.2f}"}
        for name, size in (
            ("arguments: weights", found.weight_bytes),
            ("arguments: optimiser", found.moment_bytes),
            ("arguments: batch", found.batch_bytes),
            *parts,
            ("needed", found.needed_bytes),
        )
    ]
    if found.memory_bytes is None:
        told = "the devices share this machine's memory: whether it fits is not known"
    else:
        share = found.needed_bytes / found.memory_bytes
        verdict = "fits" if found.fits else "DOES NOT FIT"
        told = f"{verdict}: needs {share:.0%} of {_gib(found.memory_bytes)} GiB that a run may take"
    return [*_table(rows), told]


def _work(found: Planned) -> Iterable[str]:
    again = found.executed_flops / found.useful_flops if found.useful_flops else 0.0
    yield (
        f"work: {found.useful_flops / 1e15:,.2f} PFLOP a step; {again:.2f} times that is computed, "
        f"with padding and what the backward pass computes again; the loss is "
        f"{found.loss_flops / max(found.executed_flops, 1):.2%} of it"
    )
    if found.sent:
        sent = ", ".join(
            f"{count:,} {kind} {size / 2**30:,.2f} GiB" for kind, count, size in found.sent
        )
        yield f"messages of a device in a step: {sent}"
    elif found.fits is not False:
        yield "messages: none"
    yield (
        f"traced in {found.trace_seconds:.0f} s, compiled in {found.compile_seconds:.0f} s "
        f"({found.cpu_seconds:.0f} s of processor time in all)"
    )
    if found.step_seconds is not None:
        yield (
            f"a step: {found.step_seconds:.2f} s = the longer of {found.compute_seconds:.2f} s of "
            f"products and {found.memory_seconds:.2f} s of memory, {found.link_seconds:.2f} s of "
            f"messages within hosts, {found.network_seconds:.2f} s between them; "
            f"{found.items_per_second:,.1f} items/s, MFU {found.mfu:.0%}"
        )
        yield f"  ({found.assumptions})"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    table = Table(box=None, pad_edge=False, header_style="")
    for number, field in enumerate(rows[0]):
        table.add_column(field, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    stream = io.StringIO()
    Console(file=stream, width=_WIDTH, highlight=False, markup=False).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:,.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _answer(fits: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[fits]
