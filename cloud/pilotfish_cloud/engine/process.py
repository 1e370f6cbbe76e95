"""An engine in a process of its own, so that the interpreter lock of what computes never delays what answers.

The parent holds ``EngineProcess``, which has the interface of any engine; the child runs ``EmbeddedEngine``
(``worker``). Between them is one socket pair with pickled messages: both ends are the same program, nothing else can
write there. The child ends when the socket closes, however the parent went; the parent hears of the child's end in the
same way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, Final

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.event_codec import unpack
from pilotfish_cloud.engine.interface import (
    CommitEvent,
    DeathListener,
    Engine,
    EngineEvent,
    EngineInfo,
    EngineStats,
    EventListener,
    FailedEvent,
    OpenRequest,
)
from pilotfish_core.drafts import DraftRun
from pilotfish_core.errors import EngineFailure, LocalError, PilotfishError, Unavailable
from pilotfish_core.modes import Hint, Mode
from pilotfish_core.scheduling import IntegrityError
from pilotfish_core.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0  # of the check of integrity: a step may be in progress


class EngineProcess(Engine):
    """See ``Engine``. ``tokenizer`` is the target's; ``info`` is complete before ``start``."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        """Use ``load``. Raises what the child could not load the model for."""
        self._process, self._connection = process, connection
        self._sending = threading.Lock()
        self._listener: EventListener | None = None
        self._on_death: DeathListener | None = None
        self._closing = self._dead = False
        self._open_keys: set[str] = set()  # what the child must answer for; guarded by _sending
        self._answered = threading.Event()
        self._complaint: str | None = None
        try:
            loaded = connection.recv()
        except (EOFError, OSError):
            code = process.wait()
            raise LocalError(f"the engine's process ended while it loaded the model (exit code {code})") from None
        if isinstance(loaded, PilotfishError):
            process.wait()
            raise loaded
        self.info: EngineInfo
        self._stats: EngineStats
        self.info, tokenizer_json, end_tokens, self._stats = loaded
        self.tokenizer = Tokenizer(tokenizer_json, eos_token_ids=end_tokens)
        self._reader = threading.Thread(target=self._read, name="pilotfish-engine-events", daemon=True)

    @classmethod
    def load(cls, config: ServerConfig) -> EngineProcess:
        """Start the child and let it load the model that ``config`` names. Raises ModelLoadError, LocalError."""
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            process = subprocess.Popen(
                [sys.executable, "-m", "pilotfish_cloud.engine.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if _is_file(sys.stderr) else subprocess.DEVNULL,  # the parent's is for its ready line
            )
        connection = Connection(ours.detach())
        try:
            connection.send(config)
            return cls(process, connection)
        except BaseException as error:
            connection.close()
            _end(process)
            if isinstance(error, BrokenPipeError):
                raise LocalError(f"the engine's process did not start (exit code {process.returncode})") from None
            raise

    def start(self, listener: EventListener, on_death: DeathListener | None = None) -> None:
        """Begin stepping. Raises RuntimeError when begun or closed before."""
        if self._listener is not None or self._closing:
            raise RuntimeError("the engine was started before")
        self._listener, self._on_death = listener, on_death
        self._reader.start()
        self._send("start")

    def open(self, request: OpenRequest) -> None:
        """Begin or continue a generation; answered by OpenedEvent or FailedEvent."""
        if not self._send("open", request, key=request.key):
            self._tell([FailedEvent(request.key, Unavailable("this replica is shutting down; resume elsewhere"))])

    def push(self, key: str, run: DraftRun) -> None:
        """Draft tokens arrived."""
        self._send("push", key, run)

    def acknowledge(self, key: str, length: int) -> None:
        """The device holds the committed tokens up to ``length``."""
        self._send("acknowledge", key, length)

    def steer(self, key: str, mode: Mode) -> None:
        """The device drafts otherwise from here on."""
        self._send("steer", key, mode)

    def hint(self, key: str, hint: Hint) -> None:
        """What the app knows about the device has changed."""
        self._send("hint", key, hint)

    def abort(self, key: str) -> None:
        """End a generation and free what it holds."""
        self._send("abort", key)
        with self._sending:
            self._open_keys.discard(key)

    def stats(self) -> EngineStats:
        """The last snapshot that came."""
        return self._stats

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block and arena is accounted for. With nothing running."""
        self._answered.clear()
        if not self._send("check") or not self._answered.wait(ANSWER_TIMEOUT_S):
            raise IntegrityError("the engine's process does not answer")
        if self._complaint is not None:
            raise IntegrityError(self._complaint)

    def close(self) -> None:
        """Stop stepping, fail what is running with Unavailable, end the child. May be called again."""
        with self._sending:
            if self._closing:
                return
            self._closing = True
            with contextlib.suppress(OSError):
                self._connection.send(("close",))
        if self._reader.is_alive() and self._reader is not threading.current_thread():
            self._reader.join(CLOSE_TIMEOUT_S)
        _end(self._process)
        self._connection.close()

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def _send(self, name: str, *arguments: object, key: str | None = None) -> bool:
        with self._sending:
            if self._closing or self._dead:
                return False
            if key is not None:
                self._open_keys.add(key)
            try:
                self._connection.send((name, time.monotonic(), *arguments))
            except OSError:  # the child is gone; the reader will notice and tell
                return False
            return True

    def _read(self) -> None:
        """The reader's thread: events, snapshots and answers, until the child closes its end."""
        while True:
            try:
                message: Any = self._connection.recv()
            except (EOFError, OSError):
                break
            if isinstance(message, list):
                self._tell(unpack(message))
            elif isinstance(message, EngineStats):
                self._stats = message
            else:
                self._complaint = message[0]
                self._answered.set()
        with self._sending:
            self._dead = True
            lost, self._open_keys = sorted(self._open_keys), set()
        died = not self._closing
        error = EngineFailure("the verifier's engine has stopped; resume elsewhere") if died else None
        self._tell([FailedEvent(key, error or Unavailable("this replica is shutting down")) for key in lost])
        if died:
            code = self._process.wait()
            _log.error("the engine's process has ended (exit code %s)", code)
            if self._on_death is not None:
                self._on_death(f"the engine's process has ended (exit code {code})")

    def _tell(self, events: list[EngineEvent]) -> None:
        if not events or self._listener is None:
            return
        ended = [event.key for event in events if _is_last(event)]
        if ended:
            with self._sending:
                self._open_keys.difference_update(ended)
        try:
            self._listener(events)
        except Exception:
            _log.exception("the engine's listener raised; its events are lost")


def _is_last(event: EngineEvent) -> bool:
    return isinstance(event, FailedEvent) or (isinstance(event, CommitEvent) and event.commit.finish is not None)


def _is_file(stream: Any) -> bool:
    try:
        return bool(os.fstat(stream.fileno()))
    except (AttributeError, OSError, ValueError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself when its socket closes; not when it hangs in a step."""
    try:
        process.wait(CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
