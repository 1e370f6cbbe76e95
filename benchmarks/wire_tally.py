"""Counts the bytes between a real client and a real verifier: frames in a tally, TCP in a proxy."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.cutting_proxy import CuttingProxy
from pilotfish.addresses import Address, parse_addresses
from pilotfish.client import AsyncClient
from pilotfish.transport import DeviceStream, Transport
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc


@dataclasses.dataclass(slots=True)
class Tally:
    """Bytes of one or more answers. ``socket_*`` leave out what came up to Opened (``opening_*``)."""

    answers: int = 0
    open_bytes: int = 0
    opened_bytes: int = 0
    draft_frames: int = 0
    draft_bytes: int = 0
    draft_tokens: int = 0
    branches: int = 0
    other_up_bytes: int = 0  # acknowledgements of their own, pings
    commits: int = 0
    commit_bytes: int = 0
    committed_tokens: int = 0
    other_down_bytes: int = 0
    opening_up: int = 0
    opening_down: int = 0
    socket_up: int = 0
    socket_down: int = 0

    def sent(self, frame: pb.DeviceFrame) -> None:
        """Count a frame of the device."""
        size = frame.ByteSize()
        tokens = draft_tokens_in(frame)
        if frame.HasField("open"):
            self.open_bytes += size
        elif tokens:
            self.draft_frames += 1
            self.draft_bytes += size
            self.draft_tokens += tokens
            self.branches += opens_branch(frame)
        else:
            self.other_up_bytes += size

    def received(self, frame: pb.CloudFrame) -> None:
        """Count a frame of the cloud."""
        size = frame.ByteSize()
        tokens = committed_tokens_in(frame)
        if frame.HasField("opened"):
            self.opened_bytes += size
        elif tokens or frame.HasField("finish"):
            self.commits += 1
            self.commit_bytes += size
            self.committed_tokens += tokens
        else:
            self.other_down_bytes += size

    @property
    def payload_up(self) -> int:
        """After Open."""
        return self.draft_bytes + self.other_up_bytes

    @property
    def payload_down(self) -> int:
        """After Opened."""
        return self.commit_bytes + self.other_down_bytes

    def figures(self) -> dict[str, float]:
        """The ratios that the bars speak of, and the others."""
        drafts, committed, commits = max(self.draft_tokens, 1), max(self.committed_tokens, 1), max(self.commits, 1)
        answers = max(self.answers, 1)
        return {
            "draft_bytes_per_draft_token": self.draft_bytes / drafts,
            "draft_tokens_per_frame": self.draft_tokens / max(self.draft_frames, 1),
            "draft_tokens_per_branch": self.draft_tokens / max(self.branches, 1),
            "draft_tokens_per_committed_token": self.draft_tokens / committed,
            "bytes_per_commit": self.commit_bytes / commits,
            "tokens_per_commit": self.committed_tokens / commits,
            "payload_up_per_committed_token": self.payload_up / committed,
            "payload_down_per_committed_token": self.payload_down / committed,
            "payload_up_per_commit": self.payload_up / commits,
            "socket_up_per_committed_token": self.socket_up / committed,
            "socket_down_per_committed_token": self.socket_down / committed,
            "socket_up_per_draft_token": self.socket_up / drafts if self.draft_tokens else 0.0,
            "socket_up_per_commit": self.socket_up / commits,
            "socket_down_per_commit": self.socket_down / commits,
            "open_payload_per_answer": self.open_bytes / answers,
            "opened_payload_per_answer": self.opened_bytes / answers,
            "opening_socket_up_per_answer": self.opening_up / answers,
            "opening_socket_down_per_answer": self.opening_down / answers,
        }


def draft_tokens_in(frame: pb.DeviceFrame) -> int:
    """How many draft tokens a frame carries."""
    return 1 if frame.HasField("token") else len(frame.tokens)


def opens_branch(frame: pb.DeviceFrame) -> bool:
    """Whether the frame's run is a branch's first."""
    return frame.HasField("branch") or frame.HasField("advance")


def committed_tokens_in(frame: pb.CloudFrame) -> int:
    """How many tokens a commit carries."""
    return 1 if frame.HasField("token") else len(frame.tokens)


class _TalliedStream(DeviceStream):
    def __init__(self, stub: pb_grpc.VerifierAsyncStub, tally: Tally, proxy: CuttingProxy) -> None:
        self._tally = tally
        self._proxy = proxy
        super().__init__(stub)

    def send(self, frame: pb.DeviceFrame) -> None:
        self._tally.sent(frame)
        super().send(frame)

    async def frames(self) -> AsyncIterator[pb.CloudFrame]:
        up, down, opened = self._proxy.bytes_up, self._proxy.bytes_down, False
        try:
            async for frame in super().frames():
                self._tally.received(frame)
                if not opened:
                    opened = True
                    self._tally.opening_up += self._proxy.bytes_up - up
                    self._tally.opening_down += self._proxy.bytes_down - down
                    up, down = self._proxy.bytes_up, self._proxy.bytes_down
                yield frame
        finally:
            self._tally.socket_up += self._proxy.bytes_up - up
            self._tally.socket_down += self._proxy.bytes_down - down


class TalliedTransport(Transport):
    """A transport that counts frames in ``tally`` and, for one stream at a time, the proxy's bytes."""

    def __init__(self, addresses: tuple[Address, ...], proxy: CuttingProxy) -> None:
        super().__init__(addresses)
        self._proxy = proxy
        self.tally = Tally()

    def open(self, number: int, timeout_s: float | None = None, route: str = "") -> DeviceStream:
        """A new stream that counts."""
        return _TalliedStream(self._stub(self.addresses[number % len(self.addresses)]), self.tally, self._proxy)


def tallied_client(proxy: CuttingProxy, **options: Any) -> tuple[AsyncClient, TalliedTransport]:
    """A client whose every byte is counted."""
    client = AsyncClient(proxy.address, **options)
    transport = TalliedTransport(parse_addresses(proxy.address), proxy)
    client._transport = transport
    return client, transport
