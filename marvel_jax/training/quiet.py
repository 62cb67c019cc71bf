"""Keeps Orbax and TensorStore from printing what is going to be told as one error."""

import logging
import sys
import time

_LOGGERS = ("absl", "asyncio")
_SECONDS_OF_ECHO = 1.0


class QuietSaving(logging.Filter):
    """From `start` to `stop` the tracebacks of failing writes in the background are not printed.

    Orbax's threads log them, asyncio does when it forgets a task, and TensorStore's threads hand
    theirs to `sys.unraisablehook` where their event loop is closed already. The failure itself is
    raised where a save is waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on = False

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "orbax" not in record.getMessage()

    def start(self) -> None:
        """Begins to hold back; does nothing if it does already."""
        if self._on:
            return
        self._on = True
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._hold_back

    def let_echoes_pass(self) -> None:
        """After a failure: waits for the writes that were under way, and goes on holding back.

        What asyncio has to say comes when it pleases; what TensorStore has must not come when the
        interpreter is closing down, and has lost its `sys.unraisablehook`.
        """
        time.sleep(_SECONDS_OF_ECHO)

    def stop(self) -> None:
        """Ends holding back."""
        if not self._on:
            return
        self._on = False
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)
        sys.unraisablehook = self._hook

    def _hold_back(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            self._hook(unraisable)
