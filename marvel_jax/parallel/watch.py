"""Ends all processes of a run when one dies, stalls or fails, with a message that says which.

Every process keeps a connection with process 0. When a process dies its host closes it; when a
host dies, or a process is stopped, no stamp comes any more. A thread sends the stamps: a process
that compiles, saves or computes for minutes still sends them.
"""

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from marvel_jax.errors import MarvelError
from marvel_jax.parallel import last_words
from marvel_jax.parallel.roll_call import Gathered

_ADVICE = (
    "Start all processes again with the same command: the run goes on from its last checkpoint."
)
_CHUNK = 1 << 16
_SECONDS_TO_BE_SEEN = 1.0
_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Patience:
    """Seconds: between stamps, and of silence that mean death.

    `grace` is how long an error that is another's fault waits for that other's name, and how long
    a process whose fellow has failed may take to come to the same error by itself.
    """

    stamp: float = 2.0
    silence: float = 40.0
    grace: float = 10.0


def _explain(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, MarvelError):
        return str(error), _EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", _EXIT_INTERRUPTED
    return None


def _tell(message: str) -> None:
    sys.stderr.write(f"marvel: {message}\n")


class Voice(NamedTuple):
    """How a command speaks when it ends by an error.

    `explain` gives an error's message and exit code, None for a fault of the program, whose
    traceback is shown; `tell` shows a message. `as_json`: a process that was killed has {"error":
    ...} written to its standard output, too.
    """

    explain: Callable[[BaseException], tuple[str, int] | None] = _explain
    tell: Callable[[str], None] = _tell
    as_json: bool = False


class Watch:
    """`with` it around the run. An error in the body ends this process and all the others.

    This process ends there and then, its error told: JAX's own farewell would wait for minutes for
    processes that will never come to it.
    """

    def __init__(
        self, gathered: Gathered, *, voice: Voice | None = None, patience: Patience | None = None
    ) -> None:
        self._me = gathered.me
        self._peers = gathered.peers
        self._coordinator = gathered.coordinator
        self._voice = voice or Voice()
        self._patience = patience or Patience()
        self._lines = {number: _Line(one) for number, one in gathered.connections.items()}
        self._departed: set[int] = set()  # said that they leave: the end of their line is no death
        self._all_departed = threading.Event()
        self._failing = threading.Event()  # this process tells an error of its own
        self._sentence: tuple[float, str] | None = None  # when to end, and what to say
        self._ending = threading.Lock()
        self._hearing = threading.Lock()  # the thread hears, and at the end whoever ends

    def __enter__(self) -> Self:
        self._speaker = self._start_speaker()
        threading.Thread(target=self._watch, name="marvel-watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._fail(error)
        self._send({"bye": True})
        if self._is_first:
            # With it goes the service that the others are connected to.
            self._all_departed.wait()
        self._dismiss_speaker()

    @property
    def _is_first(self) -> bool:
        return self._me.process_id == 0

    # What the process itself does.

    def _fail(self, error: BaseException) -> None:
        explained = self._voice.explain(error)
        if explained is None:
            # Most likely because another died; then the thread ends this process meanwhile.
            time.sleep(self._patience.grace)
        with self._ending:
            self._failing.set()
            message, code = explained or (traceback.format_exception_only(error)[-1].strip(), 1)
            self._send({"stop": f"{self._me} ended: {message}"})
            if explained is None:
                traceback.print_exception(error)
            self._exit(f"{self._me}: {message}", code)

    def _exit(self, message: str, code: int) -> None:
        # JAX's C++ part may abort at this moment, with a stack of its own that says less: it loses
        # its standard error, and the message is the last word there.
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more, as behind `head`
            sys.stderr.flush()
            sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            self._voice.tell(message)
            sys.stdout.flush()
            sys.stderr.flush()
        self._dismiss_speaker()
        if self._is_first:
            # The others may still have to hear why, and end themselves.
            deadline = time.monotonic() + 2 * self._patience.grace
            while self._lines and time.monotonic() < deadline:
                self._hear(timeout=0.1)
            # The speaker of one that was killed looks whether this process is there.
            time.sleep(_SECONDS_TO_BE_SEEN)
        os._exit(code)

    # What the thread does.

    def _watch(self) -> None:
        last_stamp = before = time.monotonic()
        while True:
            if self._ending.locked():
                return  # `_exit` listens from now on
            self._hear(timeout=self._patience.stamp / 4)
            now = time.monotonic()
            if now - last_stamp >= self._patience.stamp:
                last_stamp = now
                self._send({})
            # A pause of this process itself, however long, is not the others' silence.
            self._note_silence(min(now - before, self._patience.stamp))
            before = now
            if self._is_first and len(self._departed) == len(self._peers) - 1:
                self._all_departed.set()
            if self._sentence is not None and now >= self._sentence[0]:
                self._execute(self._sentence[1])

    def _hear(self, *, timeout: float) -> None:
        with self._hearing, selectors.DefaultSelector() as selector:
            for number, line in self._lines.items():
                selector.register(line.connection, selectors.EVENT_READ, number)
            for key, _ in selector.select(timeout):
                number = key.data
                messages, ended = self._lines[number].read()
                for message in messages:
                    self._obey(number, message)
                if ended:
                    del self._lines[number]
                    if number not in self._departed:
                        self._mourn(number, "died (the connection with it broke)")

    def _note_silence(self, seconds: float) -> None:
        for number, line in list(self._lines.items()):
            line.silence += seconds
            if line.silence > self._patience.silence and number not in self._departed:
                self._departed.add(number)
                self._mourn(
                    number,
                    f"has said nothing for {self._patience.silence:.0f} s (stopped, or its host "
                    "or network is down)",
                )

    def _obey(self, number: int, message: dict[str, Any]) -> None:
        if "bye" in message:
            self._departed.add(number)
        elif "stop" in message:
            if self._is_first:
                self._departed.add(number)
                self._send(message)
            grace = 0.0 if message.get("death") else self._patience.grace
            self._condemn(message["stop"], after=grace)

    def _mourn(self, number: int, how: str) -> None:
        peer = self._peers[number]
        role = "" if number else ", which coordinates the run,"
        cause = f"{peer}{role} {how}. {_ADVICE}"
        if self._is_first:
            self._send({"stop": cause, "death": True})
        self._condemn(cause, after=0.0)

    def _condemn(self, cause: str, *, after: float) -> None:
        when = time.monotonic() + after
        if self._sentence is None or when < self._sentence[0]:
            self._sentence = when, f"{self._me} stops, because {cause}"

    def _execute(self, message: str) -> None:
        with self._ending:
            if not self._failing.is_set():
                self._exit(message, _EXIT_ERROR)

    def _send(self, message: dict[str, Any]) -> None:
        for line in list(self._lines.values()):
            line.write(message)

    # The child that speaks for a process that could not.

    def _start_speaker(self) -> subprocess.Popen[bytes]:
        host, _, port = self._coordinator.rpartition(":")
        knows = {
            "me": str(self._me),
            "first": str(self._peers[0]),
            "is_first": self._is_first,
            "address": [host.strip("[]"), int(port)],
            "advice": _ADVICE,
            "json": self._voice.as_json,
        }
        command = [sys.executable, "-I", "-S", last_words.__file__]
        # In a session of its own: Ctrl-C is not for it.
        speaker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert speaker.stdin is not None
        speaker.stdin.write(json.dumps(knows).encode() + b"\n")
        speaker.stdin.flush()
        return speaker

    def _dismiss_speaker(self) -> None:
        stdin = self._speaker.stdin
        if stdin is None or stdin.closed:
            return
        try:
            stdin.write(b'{"bye": true}\n')
            stdin.close()
            self._speaker.wait(timeout=self._patience.grace)
        except (OSError, subprocess.TimeoutExpired):
            pass  # somebody killed it, or starves it: it has nothing to say any more


class _Line:
    """JSON lines over one connection, written by several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.silence = 0.0
        self._read = b""
        self._writing = threading.Lock()
        connection.settimeout(1.0)

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have come, and whether the other side is gone; there is something."""
        try:
            chunk = self.connection.recv(_CHUNK)
        except TimeoutError:
            return [], False
        except OSError:
            chunk = b""
        self.silence = 0.0
        *lines, self._read = (self._read + chunk).split(b"\n")
        return [json.loads(line) for line in lines if line], not chunk

    def write(self, message: dict[str, Any]) -> None:
        """Writes one; a line that is broken shows when it is read."""
        with self._writing, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")
