"""What a command is given is checked before anything heavy begins."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.encoding import EncodingOptions, find_share, read_items
from marvel_jax.retrieval.encode_shards import Share
from tests import tiny


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.py does not exist: give a Python file"),
        ("config = 3", r"config\.py must define `config`, a TrainConfig; found int"),
        ("", r"config\.py must define `config`, a TrainConfig; found NoneType"),
        ("1 / 0", r"config\.py fails: ZeroDivisionError: division by zero"),
        ("def", r"config\.py fails: SyntaxError"),
        ("import no_such_module", r"config\.py fails: ModuleNotFoundError"),
        (
            "from marvel_jax.training.config import OptimizerConfig as O; O(learning_rate=0)",
            r"config\.py: optimizer\.learning_rate=0 must be positive",
        ),
    ],
)
def test_a_config_that_defines_no_run_is_told(tmp_path, content, message):
    path = tmp_path / "config.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MarvelError, match=message):
        load_config(path)


def test_the_configs_of_single_runs_in_the_repository_load():
    from pathlib import Path

    # Recipes define `recipe`: tests/configs/test_recipes.py.
    found = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    configs = [path for path in found if "\nconfig = " in path.read_text()]
    assert configs
    for path in configs:
        assert load_config(path, ("steps=3",)).steps == 3


def test_a_pool_of_items_is_read_in_order_with_pictures_beside_it(tmp_path):
    (tmp_path / "cat.png").write_bytes(tiny.picture(0))
    (tmp_path / "pool.jsonl").write_text(
        '{"id": "b", "text": "a cat"}\n\n{"id": "a", "image": "cat.png", "text": "this"}\n'
    )
    first, second = read_items(tmp_path / "pool.jsonl")
    assert (first.id, first.modality, first.item.parts) == ("b", "text", ("a cat",))
    assert (second.id, second.modality, second.item.id) == ("a", "image,text", "a")
    assert second.item.images[0].source == tmp_path / "cat.png"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a", "text": "x"}\n{"id": ', r"pool\.jsonl, line 2: not valid JSON"),
        ('["a"]', r"pool\.jsonl, line 1: expected a JSON object, found list"),
        ('{"text": "x"}', r"pool\.jsonl, line 1: expected an id \(text\), found None"),
        ('{"id": 3, "text": "x"}', r"line 1: expected an id \(text\), found 3"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', r"line 2: id 'a' occurs twice"),
        ('{"id": "a"}', r"line 1: 'a': an item has neither text nor image"),
        ('{"id": "a", "text": " "}', r"line 1: 'a': an item has neither text nor image"),
        ('{"id": "a", "text": 5}', r"line 1: 'a': expected text as a text, found 5"),
        ('{"id": "a", "image": [3]}', r"line 1: 'a': expected image as a path or paths, found 3"),
        ("\n", r"pool\.jsonl holds no item"),
    ],
)
def test_a_broken_pool_is_told_with_its_line(tmp_path, lines, message):
    (tmp_path / "pool.jsonl").write_text(lines)
    with pytest.raises(MarvelError, match=message):
        read_items(tmp_path / "pool.jsonl")


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}  # and no address


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((None, None), {}, (Share(0, 1), None)),
        ((None, 1), {}, (Share(0, 1), None)),
        ((2, 3), {}, (Share(2, 3), None)),
        ((None, None), SLURM, (Share(3, 4), 1)),
        ((None, None), OPEN_MPI, (Share(1, 2), None)),
        ((0, 2), SLURM, (Share(0, 2), None)),
        ((None, 1), SLURM, (Share(0, 1), None)),
    ],
)
def test_a_process_finds_its_share(given, environment, expected):
    assert find_share(*given, environment=environment) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1, None), "need --num-processes too"),
        ((None, 4), "need --process-id too"),
        ((4, 4), "--process-id 4: with --num-processes 4 it is 0 to 3"),
        ((-1, 4), "--process-id -1"),
    ],
)
def test_half_a_share_or_one_too_many_is_refused(given, message):
    with pytest.raises(MarvelError, match=message):
        find_share(*given, environment={})


def test_fewer_than_no_broken_pictures_cannot_be_tolerated():
    with pytest.raises(MarvelError, match="tolerate=-1"):
        EncodingOptions(tolerate=-1)
