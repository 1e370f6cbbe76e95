"""Resume tickets: the cloud's proof, kept by the device, that it committed what a resume claims. No I/O, no clock.

A ticket is an HMAC over tenant, model, generation id, prompt, parameters and all output so far, under a key that the
replicas of a deployment share. It covers that output exactly, so a device that resumes with one can claim no token that
was not committed, however often it resumes; what it holds beyond its last ticket the cloud decides again.

Who decides again must decide the same: a deterministic cloud gives a ticket every few tokens, any other one with each
commit, so that nothing is ever left beyond it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import struct
from collections.abc import Sequence
from typing import Final

from pilotfish_core.errors import ResumeRefused
from pilotfish_core.messages import Open

TICKET_BYTES: Final = 12  # 96 bits: each guess costs a call
TICKET_EVERY: Final = 16  # committed tokens, where what comes after them can be decided again


class TicketLine:
    """Tickets of one stream, as its output grows."""

    def __init__(self, key: bytes, head: bytes, output: Sequence[int], every: int) -> None:
        self._key = key
        self._head = head
        self._every = every
        self._output = hashlib.sha256(_packed(output))
        self._length = len(output)
        self._due = self._length + 1  # the first commit carries one: without any, nothing could be resumed

    def commit(self, tokens: Sequence[int]) -> bytes | None:
        """Tokens were committed. Returns the ticket that goes with them, if one is due."""
        self._output.update(_packed(tokens))
        self._length += len(tokens)
        if self._length < self._due:
            return None
        self._due = self._length + self._every
        return self.ticket()

    def ticket(self) -> bytes:
        """The proof of all output so far."""
        message = self._head + self._length.to_bytes(8) + self._output.digest()
        return hmac.new(self._key, message, hashlib.sha256).digest()[:TICKET_BYTES]


class Tickets:
    """Gives tickets and knows them again. ``every``: committed tokens from one to the next."""

    def __init__(self, key: bytes, *, every: int = 1) -> None:
        self._key = key
        self._every = every

    def line(self, tenant: str, model: str, opening: Open) -> TicketLine:
        """Tickets of a stream that begins with ``opening``."""
        return TicketLine(self._key, generation_digest(tenant, model, opening), opening.output, self._every)

    def check(self, tenant: str, model: str, opening: Open) -> None:
        """Raises ResumeRefused when the output of ``opening`` is not what its ticket proves."""
        if not opening.output:
            return
        if not opening.ticket:
            raise ResumeRefused("this verifier goes on with committed tokens only by its own ticket, and there is none")
        expected = self.line(tenant, model, opening).ticket()
        if not hmac.compare_digest(expected, opening.ticket):
            raise ResumeRefused(
                f"the ticket does not prove the {len(opening.output)} committed tokens that the device says it holds"
            )


def generation_digest(tenant: str, model: str, opening: Open) -> bytes:
    """32 bytes of what does not change while a generation goes on, from attempt to attempt and from replica to replica:
    id, prompt and parameters. Length-prefixed, so that no two generations have the same.
    """
    params = json.dumps(dataclasses.asdict(opening.params), sort_keys=True, separators=(",", ":"))
    parts = (
        b"pilotfish ticket 1",
        tenant.encode("utf-8", "surrogatepass"),
        model.encode("utf-8", "surrogatepass"),
        opening.generation_id,
        hashlib.sha256(_packed(opening.prompt)).digest(),
        params.encode(),
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.digest()


def _packed(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)
