from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.drafts import Commit
from pilotfish_core.errors import ProtocolViolation, ResumeRefused
from pilotfish_core.messages import Open, Ticket
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tickets import TICKET_BYTES, Tickets
from pilotfish_core.wire import CloudFrameReader, CloudFrameWriter, DeviceFrameReader, DeviceFrameWriter

TICKETS = Tickets(b"key")
OPEN = Open(
    model="m",
    tokenizer_hash="ab" * 32,
    generation_id=bytes(range(16)),
    attempt=1,
    prompt=(1, 2, 3),
    params=SamplingParams(seed=5),
)


def resumed(output: tuple[int, ...], ticket: bytes | None, **changes: Any) -> Open:
    return dataclasses.replace(OPEN, output=output, ticket=ticket or b"", **changes)


def ticket_for(*commits: tuple[int, ...]) -> bytes:
    line = TICKETS.line("tenant", "m", OPEN)
    tickets = [line.commit(tokens) for tokens in commits]
    assert tickets[-1] is not None
    assert len(tickets[-1]) == TICKET_BYTES
    return tickets[-1]


TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5).map(tuple)


@given(st.lists(TOKENS, min_size=1, max_size=6), st.lists(TOKENS, min_size=1, max_size=3))
def test_a_ticket_proves_what_was_committed_however_it_was_cut(
    before: list[tuple[int, ...]], after: list[tuple[int, ...]]
) -> None:
    output = sum(before, ())
    resume = resumed(output, ticket_for(*before), attempt=2)
    TICKETS.check("tenant", "m", resume)
    line = TICKETS.line("tenant", "m", resume)
    for tokens in after:
        ticket = line.commit(tokens)
    whole = resumed(output + sum(after, ()), ticket)
    TICKETS.check("tenant", "m", whole)
    assert ticket == ticket_for(output + sum(after, ()))


@pytest.mark.parametrize(
    "forged",
    [
        resumed((7, 8, 9, 10), ticket_for((7, 8, 9))),
        resumed((7, 8), ticket_for((7, 8, 9))),
        resumed((7, 8, 8), ticket_for((7, 8, 9))),
        resumed((7, 8, 9), ticket_for((7, 8, 9)), prompt=(1, 2)),
        resumed((7, 8, 9), ticket_for((7, 8, 9)), params=SamplingParams(seed=6)),
        resumed((7, 8, 9), ticket_for((7, 8, 9)), params=SamplingParams(seed=5, max_tokens=10_000)),
        resumed((7, 8, 9), ticket_for((7, 8, 9)), generation_id=bytes(16)),
        resumed((7, 8, 9), ticket_for((7, 8, 9))[:-1]),
        resumed((7, 8, 9), b"x" * TICKET_BYTES),
        resumed((7, 8, 9), b""),
    ],
)
def test_a_ticket_proves_nothing_else(forged: Open) -> None:
    with pytest.raises(ResumeRefused, match="ticket"):
        TICKETS.check("tenant", "m", forged)


def test_a_ticket_is_of_its_tenant_model_and_deployment() -> None:
    resume = resumed((7, 8, 9), ticket_for((7, 8, 9)))
    TICKETS.check("tenant", "m", resume)
    Tickets(b"key", every=16).check("tenant", "m", resume)
    for tickets, tenant, model in (
        (TICKETS, "tenantm", ""),
        (TICKETS, "other", "m"),
        (TICKETS, "tenant", "n"),
        (Tickets(b"other"), "tenant", "m"),
    ):
        with pytest.raises(ResumeRefused):
            tickets.check(tenant, model, resume)


def test_a_beginning_needs_no_ticket() -> None:
    TICKETS.check("tenant", "m", OPEN)
    TICKETS.check("tenant", "m", resumed((), b"whatever"))


def test_tickets_come_with_the_first_commit_and_then_now_and_then() -> None:
    line = Tickets(b"key", every=4).line("t", "m", OPEN)
    assert [line.commit((1,)) is not None for _ in range(10)] == [True, *[False, False, False, True] * 2, False]


def test_a_ticket_travels_with_a_commit_and_back_in_open() -> None:
    writer, reader = CloudFrameWriter(), CloudFrameReader()
    reader._opened = True
    frame = writer.commit(Commit(3, (7, 8, 9), accepted=2), b"t" * TICKET_BYTES)
    assert reader.read(frame)[-1] == Ticket(b"t" * TICKET_BYTES, 6)
    plain = CloudFrameWriter().commit(Commit(3, (7, 8, 9), accepted=2))
    assert frame.ByteSize() - plain.ByteSize() == TICKET_BYTES + 2
    resume = resumed((7, 8, 9), b"t" * TICKET_BYTES)
    assert DeviceFrameReader().read(DeviceFrameWriter().open(resume)) == [resume]


def test_a_ticket_for_nothing() -> None:
    lonely = CloudFrameWriter().prefix_unknown()
    lonely.ticket = b"x"
    with pytest.raises(ProtocolViolation, match="ticket for nothing"):
        CloudFrameReader().read(lonely)
