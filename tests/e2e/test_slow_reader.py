"""A peer that asks for much and reads nothing: bounded in bytes, then cut, and nothing of it is left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from pilotfish_cloud.engine.interface import EngineEvent
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.service import VerifierService
from pilotfish_cloud.stream import Stream
from tests.e2e import raw_http2
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.raw_calls import idle, opening, serves

pytestmark = pytest.mark.asyncio(loop_scope="session")
BACKLOG = 4 * 1024
CUT_AFTER_S = 0.2


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def patient() -> AsyncIterator[Verifier]:
    """A verifier that goes on long without acknowledgements."""
    async with serving(max_unacknowledged=4096) as verifier:
        yield verifier


@pytest.fixture
def parts(patient: Verifier) -> Iterator[tuple[Gateway, VerifierService]]:
    gateway, service = patient.server.gateway, patient.server.service
    assert gateway is not None
    assert service is not None
    before = gateway._max_backlog_bytes, service.calls.cut_after_s
    gateway._max_backlog_bytes, service.calls.cut_after_s = BACKLOG, CUT_AFTER_S
    yield gateway, service
    gateway._max_backlog_bytes, service.calls.cut_after_s = before


@pytest.mark.parametrize("window", [0, 1, 400])
async def test_who_does_not_read_is_cut(
    patient: Verifier,
    parts: tuple[Gateway, VerifierService],
    window: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway, service = parts
    largest = 0
    take = Stream.take

    def watch(stream: Stream, event: EngineEvent) -> None:
        nonlocal largest
        take(stream, event)
        largest = max(largest, stream.backlog_bytes)

    monkeypatch.setattr(Stream, "take", watch)
    async with raw_http2.connection(patient.server.port, window=window) as peer:
        number = peer.call(opening(patient, max_tokens=1500, logprobs=20).SerializeToString())
        await admitted(peer, number)
        await idle(patient)  # the handler has gone, though nothing was read
        assert BACKLOG < largest < BACKLOG + 8 * 1024  # by the commit that was too much, no more
        assert patient.engine.stats().running == gateway.admission.generations == 0
        peer.grant(1 << 20, 0, number)  # who reads late is told why it was cut
        assert b"resume to go on" in await rest(peer, number)
    await settled(service)
    gc.collect()  # a task whose exception nobody took would say so now
    assert "never retrieved" not in caplog.text
    assert "Traceback" not in caplog.text
    await serves(patient)


async def test_who_never_reads_costs_no_more_than_its_connection(
    patient: Verifier, parts: tuple[Gateway, VerifierService], caplog: pytest.LogCaptureFixture
) -> None:
    _, service = parts
    async with raw_http2.connection(patient.server.port, window=0) as peer:
        for name in range(20):
            number = peer.call(opening(patient, name=100 + name, max_tokens=600, logprobs=20).SerializeToString())
            await admitted(peer, number)
        async with connected(patient) as client:  # beside them
            stream = await client.generate("def f(", max_tokens=8, temperature=0, ignore_eos=True)
            assert len((await stream.result()).token_ids) == 8
        await idle(patient, patience_s=120)
        assert len(service.calls.pending) == 3 * 20  # a read, a write and a status each wait in gRPC
    await settled(service)  # and are gone with the connection
    assert "Traceback" not in caplog.text
    await serves(patient)


async def test_an_end_that_nobody_reads(
    patient: Verifier, parts: tuple[Gateway, VerifierService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish_cloud.gateway.READ_WITHIN_S", 0.2)
    _, service = parts
    async with raw_http2.connection(patient.server.port, window=0) as peer:
        number = peer.call(opening(patient, max_tokens=3).SerializeToString())
        await admitted(peer, number)
        await idle(patient)
        peer.grant(1 << 20, 0, number)
        assert b"was not read within" in await rest(peer, number)
    await settled(service)
    await serves(patient)


async def admitted(peer: raw_http2.Connection, number: int) -> None:
    """Wait for the headers of a call's answer."""
    async with asyncio.timeout(30):
        async for kind, stream, _ in peer.frames():
            if (kind, stream) == (raw_http2.HEADERS, number):
                return


async def settled(service: VerifierService) -> None:
    """Wait until nothing is left in gRPC of calls that were cut."""
    async with asyncio.timeout(30):
        while service.calls.pending:
            await asyncio.wait(list(service.calls.pending))


async def rest(peer: raw_http2.Connection, number: int) -> bytes:
    """What is left of a stream, up to its trailers."""
    received = b""
    async with asyncio.timeout(30):
        async for kind, stream, payload in peer.frames():
            if stream == number:
                received += payload
                if kind == raw_http2.HEADERS:
                    break
    return received
