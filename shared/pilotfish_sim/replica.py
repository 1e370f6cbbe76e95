"""A verifier replica: what gateway and gRPC service do between a device's frames and the engine."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.errors import PilotfishError
from pilotfish_core.messages import Acknowledged, Open, Opened, Ping
from pilotfish_core.modes import Advice, Hint, Mode
from pilotfish_core.prompts import PromptStore
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.trace import TraceWriter
from pilotfish_core.wire import CloudFrameWriter, DeviceFrameReader
from pilotfish_sim.clock import Clock
from pilotfish_sim.engine import Listener, VirtualEngine
from pilotfish_sim.path import Stream
from pilotfish_sim.target_model import Target
from pilotfish_sim.text import Text

TENANT: Final = ""
FINGERPRINT: Final = "simulated"


class Replica:
    """Takes streams."""

    def __init__(self, clock: Clock, target: Target, number: int = 0, trace: TraceWriter | None = None) -> None:
        self.engine = VirtualEngine(clock, target, number, trace)
        self.open_s = target.open_ms / 1e3
        self.prompts = PromptStore()
        self.connections: dict[Stream, Connection] = {}
        self.clock = clock
        self._keys = (str(number) for number in itertools.count())

    def connect(self, stream: Stream, text: Text) -> None:
        """A device opens a stream."""
        self.connections[stream] = Connection(self, stream, next(self._keys), text)

    def disconnect(self, stream: Stream) -> None:
        """The device, or the link, ended it."""
        connection = self.connections.pop(stream, None)
        if connection is not None:
            self.engine.abort(connection.key)


class Connection:
    """The cloud's end of one stream."""

    def __init__(self, replica: Replica, stream: Stream, key: str, text: Text) -> None:
        self.key = key
        self._replica, self._stream, self._text = replica, stream, text
        self._reader, self._writer = DeviceFrameReader(), CloudFrameWriter()
        stream.cloud_end(self._received)

    def _received(self, frame: pb.DeviceFrame) -> None:
        engine = self._replica.engine
        for message in self._reader.read(frame):
            match message:
                case DraftRun():
                    engine.push(self.key, message)
                case Acknowledged(length):
                    engine.acknowledge(self.key, length)
                case Ping():
                    self._stream.down(self._writer.pong(message))
                case Mode():
                    engine.steer(self.key, message)
                case Hint():
                    engine.hint(self.key, message)
                case Open():
                    self._open(message)

    def _open(self, opening: Open) -> None:
        prompts = self._replica.prompts
        if opening.prefix is not None:
            ids = prompts.find(TENANT, opening.prefix)
            if ids is None:
                self._stream.down(self._writer.prefix_unknown())
                return
            opening = dataclasses.replace(opening, prompt=(*ids, *opening.prompt), prefix=None)
        prompts.insert(TENANT, opening.prompt)
        listener = Listener(self._opened, self._committed, self._advised, self._failed)
        replica = self._replica

        def begin(_: None) -> None:
            if self._stream in replica.connections:
                replica.engine.open(self.key, opening, self._text, listener)

        if replica.open_s:
            replica.clock.at(replica.clock.now + replica.open_s, begin)
        else:
            begin(None)

    def _opened(self, cached_tokens: int) -> None:
        engine = self._replica.engine
        message = Opened(
            model="simulated",
            fingerprint=FINGERPRINT,
            max_model_len=engine.max_model_len,
            max_draft_tokens=engine.max_draft_tokens,
            max_unacknowledged=engine.max_unacknowledged,
            cached_tokens=cached_tokens,
            cloud_draft=engine.cloud_draft,
        )
        self._stream.down(self._writer.opened(message))

    def _committed(self, commit: Commit) -> None:
        self._stream.down(self._writer.commit(commit))
        if commit.finish is not None:
            self._replica.connections.pop(self._stream, None)

    def _advised(self, advice: Advice) -> None:
        self._stream.down(self._writer.advice(advice))

    def _failed(self, error: PilotfishError) -> None:
        self._stream.fail(error)
        self._replica.connections.pop(self._stream, None)
