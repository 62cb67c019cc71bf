"""The data doctor on test sets beside M-BEIR."""

import pytest

from marvel_jax.data.doctor import CheckOptions
from marvel_jax.data.doctor_problems import Findings, Kind
from marvel_jax.data.protocols import registry
from marvel_jax.data.protocols.check import check_set
from marvel_jax.recipes.doctoring import check_data
from tests.data import videos
from tests.protocol_folders import FIXTURES, put

NO_COUNTS = CheckOptions(counts="none", jobs=1)


def found(name, folder, options=NO_COUNTS):
    with Findings(keep_all=False) as findings:
        checked = check_set(registry.find(name), folder, findings, options=options)
    return checked, findings


@pytest.mark.parametrize("name", [name for name in FIXTURES if name not in ("msrvtt", "msvd")])
def test_a_whole_folder_has_nothing_wrong_but_subsets_that_are_not_there(name, tmp_path):
    FIXTURES[name].write(tmp_path)
    checked, findings = found(name, tmp_path)
    assert checked.complete and set(findings.counts) <= {Kind.MISSING_FILE}
    assert bool(findings.counts) == (name in ("genecis", "sugarcrepe"))
    assert (checked.looked_at > 0) == (name != "beir")


def test_all_that_is_wrong_is_told_in_one_run(tmp_path):
    FIXTURES["circo"].write(tmp_path)
    pictures = tmp_path / "images" / "unlabeled2017"
    (pictures / "000000000003.jpg").unlink()
    (pictures / "000000000004.jpg").write_bytes(b"text")
    text = (tmp_path / "annotations" / "val.json").read_text()
    put(tmp_path / "annotations" / "val.json", text.replace('"id": 1', '"id": 0'))
    _, findings = found("circo", tmp_path, CheckOptions(jobs=1))
    assert dict(findings.counts) == {
        Kind.DUPLICATE_ID: 1,
        Kind.WRONG_COUNT: 4,  # queries and pool of val and of test
        Kind.IMAGE_MISSING: 1,
        Kind.IMAGE_UNDECODABLE: 1,
    }
    (missing,) = findings.samples[Kind.IMAGE_MISSING]
    assert missing.id == "3" and missing.image == "images/unlabeled2017/000000000003.jpg"
    assert "220" in str(findings.samples[Kind.WRONG_COUNT][0])


def test_videos_are_decoded_where_pictures_are(tmp_path):
    pytest.importorskip("av", reason="the video extra")
    FIXTURES["msvd"].write(tmp_path)
    folder = tmp_path / "YouTubeClips"
    videos.write(folder / "one_0_5.avi", videos.grey(8))
    whole = videos.encoded(videos.grey(8))
    (folder / "two_1_7.avi").write_bytes(whole[: len(whole) // 2])
    _, findings = found("msvd", tmp_path, NO_COUNTS)
    assert not findings.counts  # files that are there
    decoding = CheckOptions(counts="none", jobs=1, images="decode")
    _, findings = found("msvd", tmp_path, decoding)
    assert dict(findings.counts) == {Kind.IMAGE_UNDECODABLE: 1}
    (broken,) = findings.samples[Kind.IMAGE_UNDECODABLE]
    assert broken.image == "YouTubeClips/two_1_7.avi"


@pytest.mark.parametrize("name", ["circo", "visdial"])
def test_what_the_reader_refuses_is_a_problem_and_the_exit_code_says_so(name, tmp_path):
    FIXTURES[name].write(tmp_path)
    FIXTURES[name].spoil(tmp_path)
    outcome = check_data(tmp_path, options=NO_COUNTS, out=None, layout=name)
    assert outcome.code == 1 and outcome.facts["errors"] == 1
