"""`marvel` as the tests of the command line have it."""

from tests.cli.conftest import marvel as marvel
