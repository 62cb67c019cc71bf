"""What docs/evaluation.md says of the test sets beside M-BEIR, and its tutorial, run as written."""

import re
from pathlib import Path

import pytest

from marvel_jax.data.protocols.protocol import Protocol
from marvel_jax.data.protocols.registry import PROTOCOLS
from marvel_jax.recipes.protocol_entry import find_protocol
from marvel_jax.recipes.protocol_evaluation import evaluate_protocol
from tests.protocol_folders import ColourEmbedder, paint, put

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def row(protocol: Protocol) -> str:
    """A set's line of the table."""
    metric = protocol.metric
    labels = ", ".join(
        f"**{metric.label(cut)}**" if cut == metric.main else metric.label(cut)
        for cut in metric.cuts
    )
    pools = "of" if protocol.own_galleries else "in"
    sizes = [
        f"{name} {one.queries:,}" + (f" {pools} {one.pool:,}" if one.pool else "")
        for name, one in protocol.sizes.items()
    ]
    alike = {(one.queries, one.pool) for one in protocol.sizes.values()}
    if len(sizes) > 7 and len(alike) == 1:
        sizes = [f"{len(sizes)} x {next(iter(alike))[0]:,}"]
    cells = (f"`{protocol.name}`", protocol.title, labels, "; ".join(sizes) or "by its files")
    return f"| {' | '.join(cells)} | {protocol.checked} |"


def source(protocol: Protocol) -> str:
    """Where a set is from and the files that are looked for, a point of the list."""
    files = ", ".join(f"`{name}`" for name in protocol.layout)
    return f"- `{protocol.name}`: {protocol.source}. Files: {files}."


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_page_says_of_each_set_what_its_entry_says(name):
    page = PAGE.read_text(encoding="utf-8")
    assert row(PROTOCOLS[name]) in page.splitlines()
    assert source(PROTOCOLS[name]) in " ".join(page.split())


def test_the_tutorials_set_is_read_and_scored(tmp_path):
    (code,) = re.findall(
        r"```python\n(\"\"\"Questions .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(code.splitlines()) < 60
    put(tmp_path / "products.py", code)
    folder = tmp_path / "products"
    for name in ("red", "yellow", "blue"):
        paint(folder / "pictures" / f"{name}.jpg", name)
    put(folder / "products.csv", "id,file\n1,red.jpg\n2,yellow.jpg\n3,blue.jpg\n")
    put(folder / "questions.csv", "id,question,products\na,red,1 2\nb,yellow,3\n")
    loaded = find_protocol(str(tmp_path / "products.py")).load(folder)
    scores = evaluate_protocol(ColourEmbedder(), loaded, workdir=tmp_path / "run").scores
    # a: both answers first. b: yellow, red, and only then blue.
    assert scores.tests[0].scores["mAP@10"].mean == pytest.approx((1 + 1 / 3) / 2)
    put(tmp_path / "other.py", "protocol = 3\n")
    with pytest.raises(Exception, match=r"other\.py must define `protocol`, a Protocol"):
        find_protocol(str(tmp_path / "other.py"))
