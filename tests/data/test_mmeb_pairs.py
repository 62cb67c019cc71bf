"""MMEB's training files as a source of pairs."""

import pytest

from marvel_jax.data.mmeb_pairs import TRAINING_SETS
from marvel_jax.data.sources import SourceConfig, open_source
from marvel_jax.errors import MarvelError
from tests.protocol_folders import paint, put, put_lines


def write(root, *, positive="14:1"):
    paint(root / "CIRR" / "a.png", "red")
    queries = [
        {"qid": "14:0", "query_txt": "more", "query_img_path": "CIRR/a.png", "task_id": 7}
        | {"pos_cand_list": [positive], "neg_cand_list": []},
        {"qid": "22:0", "query_txt": "dog", "query_img_path": "CIRR/a.png"}
        | {"pos_cand_list": ["22:5"], "neg_cand_list": ["14:1"]},
    ]
    put_lines(root / "mmeb_union_query.jsonl", queries)
    candidates = [("14:1", None, "CIRR/a.png"), ("22:5", None, "CIRR/b.png"), ("14:7", "x", None)]
    put_lines(
        root / "mmeb_union_candidate.jsonl",
        [{"did": id, "txt": text, "img_path": path} for id, text, path in candidates],
    )
    instructions = {name: {"qry_instruction": f"Ask {name}."} for name in set(TRAINING_SETS)}
    put(root / "data_instruction.json", instructions)
    return SourceConfig(path=str(root), reader="mmeb")


def test_pairs_with_the_instruction_of_their_data_set(tmp_path):
    source = open_source(write(tmp_path))
    assert len(set(TRAINING_SETS)) == 20
    found = [source.instructions[query.instruction_key] for query in source.queries]
    assert found == [("Ask CIRR.",), ("Ask MSCOCO.",)]
    first, second = source.queries
    assert [part if isinstance(part, str) else part.source.name for part in first.item.parts] == [
        "a.png",
        "more",
    ]
    answers = [source.candidates[source.candidate_index(one)] for one in second.positives]
    assert [one.item.images[0].source for one in answers] == [tmp_path / "CIRR" / "b.png"]
    assert second.negatives == first.positives  # one content is one candidate


def test_what_is_wrong_is_told_with_its_line(tmp_path):
    with pytest.raises(MarvelError, match=r"line 1: pos_cand_list names '14:9', which is not in"):
        open_source(write(tmp_path, positive="14:9"))
    config = write(tmp_path)
    text = (tmp_path / "mmeb_union_query.jsonl").read_text()
    put(tmp_path / "mmeb_union_query.jsonl", text.replace("22:0", "23:0"))
    with pytest.raises(MarvelError, match=r"line 2: qid '23:0' begins with no number"):
        open_source(config)
