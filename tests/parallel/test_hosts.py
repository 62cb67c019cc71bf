"""A run of several processes is started by three options, or not at all."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.parallel import hosts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, None), "needs --num-processes, --process-id too"),
        ((None, 2, 0), "needs --coordinator too, for example --coordinator host0:12345"),
        (("host:1", 2, None), "needs --process-id too"),
        (("host", 2, 0), "--coordinator host: expected HOST:PORT"),
        (("host:", 2, 0), "--coordinator host:: expected HOST:PORT"),
        ((":12", 2, 0), "--coordinator :12: expected HOST:PORT"),
        (("host:12", 2, 2), "--process-id 2: with --num-processes 2 it is one of 0 to 1"),
        (("host:12", 2, -1), "--process-id -1"),
    ],
)
def test_half_a_start_is_refused(given, message):
    with pytest.raises(MarvelError, match=message):
        hosts.start(*given)


def test_alone_nothing_is_waited_for():
    hosts.start(None, None, None)
    assert hosts.is_main() and hosts.is_alone()
    assert hosts.from_main(lambda: {"a": [1, "b"]}) == {"a": [1, "b"]}


def test_an_error_of_the_first_process_is_raised():
    def refuse():
        raise MarvelError("no")

    with pytest.raises(MarvelError, match="no"):
        hosts.from_main(refuse)
