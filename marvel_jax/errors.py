"""The one exception that a user is meant to read."""


class MarvelError(Exception):
    """Bad input or a refused request, told in one message and shown without a traceback.

    The message names the file, line, id or field, what was expected, what was found, and what
    to do. Anything else that is raised is a fault of this package and keeps its traceback.
    """
