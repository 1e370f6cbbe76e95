"""Prompts by hash: a prefix that the cloud has seen before need not be sent again (Redis's EVALSHA habit).

A prefix is named by a chained SHA-256 over whole blocks of ``PROMPT_BLOCK`` ids, so that prompts which only begin alike
share what they share. The device remembers which prefixes it has sent (``SentPrompts``); the cloud keeps ids of what
it was sent, for each tenant apart (``PromptStore``). Either may forget at any time: a prefix that the cloud does not
know is answered by PrefixUnknown, and then the device sends the ids.
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

PROMPT_BLOCK: Final = 16  # ids
MIN_PREFIX_BLOCKS: Final = 2  # below that the hash takes as many bytes as the ids
_ROOT: Final = hashlib.sha256(b"pilotfish prompt prefix 1").digest()


class PromptPrefix(NamedTuple):
    """The first ``length`` ids of a prompt by their digest, 32 bytes. ``length`` is a multiple of PROMPT_BLOCK."""

    digest: bytes
    length: int


def prefixes(tokens: Sequence[int]) -> list[PromptPrefix]:
    """All prefixes of ``tokens`` that have a name, the shortest first. Raises OverflowError beyond 32 bits."""
    data = array.array("I", tokens)
    if data.itemsize != 4:
        raise TypeError("this platform's unsigned int has not 32 bits")
    named: list[PromptPrefix] = []
    parent = _ROOT
    for end in range(PROMPT_BLOCK, len(data) + 1, PROMPT_BLOCK):
        parent = hashlib.sha256(parent + data[end - PROMPT_BLOCK : end].tobytes()).digest()
        named.append(PromptPrefix(parent, end))
    return named


class SentPrompts:
    """The device's memory of prompts that a verifier was sent. Bounded: the least recently used are forgotten."""

    def __init__(self, *, max_blocks: int = 16384) -> None:
        self._max_blocks = max_blocks
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._digests)

    def sent(self, tokens: Sequence[int]) -> None:
        """The verifier has taken ``tokens`` as a prompt."""
        for prefix in reversed(prefixes(tokens)):  # the shortest last: more prompts share it
            self._digests[prefix.digest] = None
            self._digests.move_to_end(prefix.digest)
        while len(self._digests) > self._max_blocks:
            self._digests.popitem(last=False)

    def known(self, tokens: Sequence[int]) -> PromptPrefix | None:
        """The longest prefix of ``tokens`` that the verifier may know, if it is worth naming."""
        found = None
        try:
            named = prefixes(tokens)
        except OverflowError:  # an id that the wire cannot carry: it will say so
            return None
        for prefix in named:
            if prefix.digest not in self._digests:
                break
            found = prefix
        return found if found is not None and found.length >= MIN_PREFIX_BLOCKS * PROMPT_BLOCK else None

    def forget(self, tokens: Sequence[int]) -> None:
        """The verifier does not know what ``tokens`` begin with after all."""
        for prefix in prefixes(tokens):
            self._digests.pop(prefix.digest, None)


class PromptStore:
    """The cloud's memory of prompts, by tenant. Bounded in blocks over all tenants, least recently used first.

    A block is kept once for all prompts of a tenant that share it. Tenants never meet: what one has sent is unknown to
    every other one, so nobody can find out by a hash what somebody else asked.
    """

    def __init__(self, *, max_blocks: int = 131072) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[tuple[str, bytes], tuple[bytes, bytes]] = OrderedDict()  # -> (parent, ids)
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def insert(self, tenant: str, tokens: Sequence[int]) -> None:
        """Remember a prompt of ``tenant``."""
        parent = _ROOT
        data = array.array("I", tokens)
        named = prefixes(tokens)
        for prefix in named:
            block = data[prefix.length - PROMPT_BLOCK : prefix.length].tobytes()
            self._blocks.setdefault((tenant, prefix.digest), (parent, block))
            parent = prefix.digest
        for prefix in reversed(named):  # a head is used whenever its tail is, and must be evicted after it
            self._blocks.move_to_end((tenant, prefix.digest))
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def find(self, tenant: str, prefix: PromptPrefix) -> tuple[int, ...] | None:
        """The ids of ``prefix``; None when they are not known (any more), or the length is not theirs."""
        blocks: list[bytes] = []
        digest = prefix.digest
        while digest != _ROOT:
            entry = self._blocks.get((tenant, digest))
            if entry is None or len(blocks) * PROMPT_BLOCK >= prefix.length:
                self.misses += 1
                return None
            self._blocks.move_to_end((tenant, digest))
            parent, ids = entry
            blocks.append(ids)
            digest = parent
        if len(blocks) * PROMPT_BLOCK != prefix.length:
            self.misses += 1
            return None
        self.hits += 1
        return tuple(array.array("I", b"".join(reversed(blocks))))
