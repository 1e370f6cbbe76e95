"""Prefix cache: finds blocks of KV by what tokens, and whose, they were computed from.

A block's hash is SHA-256 over its parent's hash and its own token ids; the first parent is derived from the tenant's
salt, so tenants can never meet. Tokens are compared again on a hit: a hash alone is never believed.
"""

from __future__ import annotations

import array
import dataclasses
import enum
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from pilotfish_core.scheduling.block_manager import BlockManager, IntegrityError

_ROOT: Final = b"pilotfish prefix cache 1"


class MissReason(enum.StrEnum):
    """Why tokens of a prompt had to be computed."""

    UNKNOWN = "unknown"  # never seen with this salt and prefix
    EVICTED = "evicted"  # seen, but its block was needed for something else
    MISMATCH = "mismatch"  # equal hash, other tokens
    TAIL = "tail"  # less than a block, or the last token, whose logits are needed


class PrefixMatch(NamedTuple):
    """The longest cached prefix: its blocks, their hashes, and why the rest was not found."""

    blocks: list[int]
    hashes: list[bytes]
    reason: MissReason


@dataclasses.dataclass(frozen=True, slots=True)
class _CachedBlock:
    block: int
    tokens: tuple[int, ...]


def root_hash(salt: bytes) -> bytes:
    """The parent of a first block; the salt is length-prefixed so that no two inputs run together."""
    return hashlib.sha256(_ROOT + len(salt).to_bytes(8, "little") + salt).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block, 32 bytes. Token ids must fit 32 bits."""
    return hashlib.sha256(parent + array.array("I", tokens).tobytes()).digest()


class PrefixCache:
    """Index of full blocks by hash, over a BlockManager's blocks.

    The manager must call ``reused`` before a kept block changes hands. ``hit_tokens`` and ``miss_tokens`` count
    prompt (and resumed output) tokens of admitted sequences.
    """

    def __init__(self, block_size: int, *, enabled: bool = True, remembered_evictions: int = 65536) -> None:
        self.block_size = block_size
        self.enabled = enabled
        self.hit_tokens = 0
        self.miss_tokens: Counter[MissReason] = Counter()
        self._by_hash: dict[bytes, _CachedBlock] = {}
        self._hash_of: dict[int, bytes] = {}
        self._evicted: OrderedDict[bytes, None] = OrderedDict()
        self._remembered_evictions = remembered_evictions

    def __len__(self) -> int:
        return len(self._by_hash)

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    def match(self, tokens: Sequence[int], salt: bytes) -> PrefixMatch:
        """The longest cached prefix of ``tokens`` that leaves at least one token to compute. Changes nothing."""
        blocks: list[int] = []
        hashes: list[bytes] = []
        if not self.enabled:
            return PrefixMatch(blocks, hashes, MissReason.UNKNOWN)
        parent = root_hash(salt)
        for index in range((len(tokens) - 1) // self.block_size):
            own = tuple(tokens[index * self.block_size : (index + 1) * self.block_size])
            parent = block_hash(parent, own)
            cached = self._by_hash.get(parent)
            if cached is None:
                reason = MissReason.EVICTED if parent in self._evicted else MissReason.UNKNOWN
                return PrefixMatch(blocks, hashes, reason)
            if cached.tokens != own:
                return PrefixMatch(blocks, hashes, MissReason.MISMATCH)
            blocks.append(cached.block)
            hashes.append(parent)
        return PrefixMatch(blocks, hashes, MissReason.TAIL)

    def count(self, match: PrefixMatch, num_tokens: int) -> None:
        """Count an admission of ``num_tokens`` tokens that used ``match``."""
        hit = len(match.blocks) * self.block_size
        cacheable = (num_tokens - 1) // self.block_size * self.block_size
        self.hit_tokens += hit
        if cacheable > hit:
            self.miss_tokens[match.reason] += cacheable - hit
        self.miss_tokens[MissReason.TAIL] += num_tokens - cacheable

    def insert(self, parent: bytes, tokens: Sequence[int], block: int) -> tuple[bytes, bool]:
        """Offer a full, committed and computed block. Returns its hash and whether it was new.

        An equal block that is already cached wins; the given one then stays its holder's private copy.
        """
        own = tuple(tokens)
        if len(own) != self.block_size:
            raise IntegrityError(f"a block of {len(own)} tokens was to be cached, not of {self.block_size}")
        digest = block_hash(parent, own)
        if not self.enabled or digest in self._by_hash or block in self._hash_of:
            return digest, False
        self._by_hash[digest] = _CachedBlock(block, own)
        self._hash_of[block] = digest
        self._evicted.pop(digest, None)
        return digest, True

    def drop(self, block: int) -> bytes:
        """Forget the contents of a cached block that is still held: they are not to be trusted. Returns its hash."""
        digest = self._hash_of.pop(block)
        del self._by_hash[digest]
        return digest

    def reused(self, block: int) -> None:
        """A kept ``block`` is about to hold something else: forget its contents, remember that they were there."""
        self._evicted[self.drop(block)] = None
        if len(self._evicted) > self._remembered_evictions:
            self._evicted.popitem(last=False)

    def check_integrity(self, blocks: BlockManager) -> None:
        """Raises IntegrityError unless index and reverse index agree and every kept block is known."""
        if {digest: cached.block for digest, cached in self._by_hash.items()} != {
            digest: block for block, digest in self._hash_of.items()
        }:
            raise IntegrityError("the prefix cache's two indices disagree")
        free_known = sum(blocks.references(block) == 0 for block in self._hash_of)
        if free_known != blocks.num_kept:
            raise IntegrityError(f"{blocks.num_kept} blocks are kept but {free_known} are cached")
