"""The child of ``EngineProcess``: an embedded engine behind a socket.

    python -m pilotfish_cloud.engine.worker FD

Not for people. Messages come as tuples (name, when it was sent, arguments); lists of events, snapshots of the counters
and answers go back.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from pilotfish_cloud import logs
from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.event_codec import pack
from pilotfish_cloud.engine.interface import EngineEvent
from pilotfish_core.errors import LocalError, MissingExtra, PilotfishError
from pilotfish_core.scheduling import IntegrityError

if TYPE_CHECKING:
    from pilotfish_cloud.engine.engine import EmbeddedEngine

_log = logging.getLogger(__name__)

STATS_EVERY_S: Final = 0.5


def main() -> int:
    """Load, say what was loaded, serve until the socket closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal to the whole group drains the parent, which then closes us
    connection = Connection(int(sys.argv[1]))
    config: ServerConfig = connection.recv()
    logs.set_up(config.log_level, config.log_format)
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    # Loading can take minutes; should the parent go meanwhile, nobody waits for the model any more.
    orphaned = threading.Event()
    threading.Thread(target=_watch, args=(os.getppid(), orphaned), daemon=True).start()
    try:
        from pilotfish_cloud.engine.engine import EmbeddedEngine

        engine = EmbeddedEngine.load(config)
    except ModuleNotFoundError as error:
        connection.send(MissingExtra.of(error.name or "torch", "cloud", "pilotfish-cloud serve"))
        return 1
    except PilotfishError as error:
        connection.send(error)
        return 1
    except Exception as error:
        _log.exception("the model could not be loaded")
        connection.send(LocalError(f"the model could not be loaded: {type(error).__name__}: {error}"))
        return 1
    finally:
        orphaned.set()
    tokenizer = engine.tokenizer
    connection.send((engine.info, tokenizer.to_json(), tuple(tokenizer.eos_token_ids), engine.stats()))
    _Worker(engine, connection).serve()
    return 0


class _Worker:
    """Messages to calls, events to messages."""

    def __init__(self, engine: EmbeddedEngine, connection: Connection) -> None:
        self._engine, self._connection = engine, connection
        self._sending = threading.Lock()
        self._closed = threading.Event()

    def serve(self) -> None:
        """Until the parent says so or is gone."""
        threading.Thread(target=self._report, name="pilotfish-stats", daemon=True).start()
        try:
            while True:
                name, *arguments = self._connection.recv()
                if name == "close":
                    break
                self._take(name, *arguments)
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone: there is nobody to finish anything for
        self._closed.set()
        self._engine.close()

    def _take(self, name: str, sent: float, *arguments: Any) -> None:
        match name:
            case "start":
                self._engine.start(self._tell, self._died)
            case "push" | "acknowledge" | "steer":
                getattr(self._engine, name)(*arguments, now=sent)
            case "open" | "hint" | "abort":
                getattr(self._engine, name)(*arguments)
            case "check":
                complaint = None
                try:
                    self._engine.check_integrity()
                except IntegrityError as error:
                    complaint = str(error)
                self._send((complaint,))

    def _tell(self, events: Sequence[EngineEvent]) -> None:
        self._send(pack(events))

    def _died(self, reason: str) -> None:
        _log.critical("%s", reason)
        os._exit(1)

    def _report(self) -> None:
        last = None
        while not self._closed.wait(STATS_EVERY_S):
            stats = self._engine.stats()
            if stats != last:
                self._send(stats)
                last = stats

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            _log.debug("the parent is gone")


def _watch(parent: int, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
