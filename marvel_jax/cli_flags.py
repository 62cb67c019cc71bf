"""Flags that every command has."""

from typing import Annotated

from tyro.conf import arg

Json = Annotated[bool, arg(help="Print one JSON object as the last line of standard output.")]
