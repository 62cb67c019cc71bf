"""Tables show the scores that stages left, by task and pool, and say what cannot be compared."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json, write_json
from marvel_jax.recipes.score_tables import read_columns


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def evaluated(path, *, local: dict[str, float], shift: float = 0.2, wrong: float = 0.5):
    sets = [
        {
            "name": name,
            "task": f"task of {name}",
            "k": 10 if name == "fashion" else 5,
            "num_queries": 300,
            "local_pool": {
                "hit": {"5": interval(mean), "10": interval(mean + 0.05)},
                "wrong_modality": None,
            },
            "global_pool": {
                "hit": {"5": interval(mean - shift), "10": interval(mean + 0.05 - shift)},
                "wrong_modality": wrong,
            },
        }
        for name, mean in local.items()
    ]
    write_json(path, {"sets": sets, "mean_local": interval(0.6), "mean_global": interval(0.4)})
    return path


def fused(path):
    judged = {
        "name": "coco",
        "num_queries": 200,
        "fused": interval(0.7),
        "change": interval(0.02),
    }
    one = {"sets": [judged], "mean_fused": 0.7, "mean_change": interval(0.02)}
    write_json(path, {"fusion": "add", "pools": {"local": one, "global": one}})
    return path


@pytest.fixture
def table(tmp_path):
    return read_columns(
        [
            ("before", evaluated(tmp_path / "a.json", local={"coco": 0.5, "fashion": 0.3})),
            ("after", evaluated(tmp_path / "b.json", local={"coco": 0.6, "fashion": 0.4})),
            ("+ reranker", fused(tmp_path / "c.json")),
        ]
    )


def test_each_cell_is_the_score_of_its_set_pool_and_stage(table):
    cells = table.cells
    assert cells["local"]["coco"]["before"].mean == 0.5
    assert cells["global"]["coco"]["after"].mean == pytest.approx(0.4)
    assert cells["local"]["fashion"]["before"].mean == pytest.approx(0.35)  # its cut is 10
    assert "+ reranker" not in cells["local"]["fashion"]
    assert list(cells["local"]) == ["coco", "fashion", "mean"]
    assert cells["local"]["mean"]["before"].mean == 0.6


def test_a_person_reads_intervals_paired_changes_and_how_many_were_judged(table):
    text = "\n".join(table.lines())
    assert "0.500 [0.400, 0.600]" in text and "0.700 [0.600, 0.800] +0.020 [-0.080, +0.120]" in text
    assert "task of coco" in text and "of another modality" in text
    assert "queries judged: before: 600, after: 600, + reranker: 200" in text
    assert "| coco | task of coco | 0.500 [0.400, 0.600] |" in "\n".join(table.markdown())


def test_of_one_pool_alone_there_is_a_table_too(tmp_path):
    path = fused(tmp_path / "f.json")
    scores = read_json(path)
    del scores["pools"]["local"]
    write_json(path, scores)
    found = read_columns([("+ reranker", path)])
    assert list(found.cells) == ["global"]
    assert "0.700 [0.600, 0.800]" in "\n".join([*found.lines(), *found.markdown()])
    assert found.averages()[0].split()[0] == "global"


def test_averages_are_a_line_for_each_stage(table):
    head, *rows = table.averages()
    assert head.split() == ["local", "global", "of", "another", "modality"]
    assert [row.split("  ")[0] for row in rows] == ["before", "after", "+ reranker"]
    assert "0.600 [0.500, 0.700]" in rows[0] and rows[0].endswith("0.500")


def test_files_of_another_kind_and_labels_twice_are_refused(tmp_path):
    write_json(tmp_path / "x.json", {"loss": 1})
    with pytest.raises(MarvelError, match=r"x.json holds no scores"):
        read_columns([("a", tmp_path / "x.json")])
    with pytest.raises(MarvelError, match="different names"):
        read_columns([("a", tmp_path / "x.json"), ("a", tmp_path / "x.json")])
