"""`--profile-steps` traces the steps that it names, and no others."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import load_config
from marvel_jax.training.loop import Watching, train
from marvel_jax.training.profiling import parse_steps
from tests.training import runs


@pytest.mark.parametrize("text", ["10", "10:", ":12", "12:10", "a:b", "-1:3", "1:2:3"])
def test_other_forms_are_refused(text):
    with pytest.raises(MarvelError, match="expected FIRST:LAST, both traced, as in 10:12"):
        parse_steps(text)


def test_the_form(tmp_path):
    assert parse_steps("10:12") == (10, 12) and parse_steps("0:0") == (0, 0)


def test_a_trace_is_written_and_changes_nothing(tiny_config, tiny_run, tmp_path, capsys):
    config = load_config(tiny_config)
    train(config, tmp_path / "run", watching=Watching(profile_steps=(2, 3)))
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    told = " ".join(capsys.readouterr().err.split())
    assert "traced steps 2 to 3" in told and "xprof --logdir" in told
    runs.assert_same_run(tmp_path / "run", tiny_run)


def test_steps_that_the_run_does_not_take_are_told(tiny_config, tmp_path, capsys):
    config = load_config(tiny_config, ("steps=2",))
    train(config, tmp_path / "run", watching=Watching(profile_steps=(50, 60)))
    told = " ".join(capsys.readouterr().err.split())
    assert "nothing is traced: --profile-steps begins at step 50" in told
    assert not (tmp_path / "run/profile").exists()
