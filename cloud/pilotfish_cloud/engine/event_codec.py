"""Commits as plain tuples, for the way between two processes: pickling 32 frozen dataclasses takes a quarter of a
millisecond on each side, their values a tenth of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pilotfish_cloud.engine.interface import CommitEvent, EngineEvent
from pilotfish_core.cloud_core import VerifyCounts
from pilotfish_core.drafts import Commit, Finish, Origin, TokenLogprobs

_ORIGINS: Final = tuple(Origin)
_PLACES: Final = {origin: place for place, origin in enumerate(_ORIGINS)}

Scores = list[tuple[float, tuple[tuple[int, float], ...]]]
Packed = tuple[str, float, int, tuple[int, ...], int, int, Finish | None, Scores | None, VerifyCounts | None]


def pack(events: Sequence[EngineEvent]) -> list[EngineEvent | Packed]:
    """Events in order, commits as tuples."""
    return [_pack(event) if type(event) is CommitEvent else event for event in events]


def unpack(events: Sequence[EngineEvent | Packed]) -> list[EngineEvent]:
    """What ``pack`` was given."""
    return [_unpack(event) if type(event) is tuple else event for event in events]  # type: ignore[misc]


def _pack(event: CommitEvent) -> Packed:
    commit = event.commit
    logprobs = None if commit.logprobs is None else [(entry.chosen, entry.top) for entry in commit.logprobs]
    return (
        event.key,
        event.step_ended,
        commit.position,
        commit.tokens,
        commit.accepted,
        _PLACES[commit.origin],
        commit.finish,
        logprobs,
        event.counts,
    )


def _unpack(packed: Packed) -> CommitEvent:
    key, step_ended, position, tokens, accepted, origin, finish, logprobs, counts = packed
    commit = Commit(
        position=position,
        tokens=tokens,
        accepted=accepted,
        origin=_ORIGINS[origin],
        finish=finish,
        logprobs=None if logprobs is None else tuple(TokenLogprobs(chosen, top) for chosen, top in logprobs),
    )
    return CommitEvent(key, commit, step_ended, counts)
