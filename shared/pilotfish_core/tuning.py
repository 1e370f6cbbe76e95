"""The policy's constants that were chosen by trying: what ``benchmarks/policy_lab.py`` sweeps. Both halves' defaults.

Constants that follow from something (bounds, what is forgotten when) stay where they are used.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DraftTuning:
    """Of the device's half (``draft_policy``)."""

    worth: float = 0.05  # a draft token that is the target's with less than this probability is not drafted
    flush_share: float = 0.1  # of the time between commits that a draft token may wait to be sent with others
    enough: int = 6  # draft tokens with the cloud, for a step
    burst: int = 8  # draft tokens at a time while there are fewer, at most
    burst_share: float = 0.25  # of the time between commits that they may take
    settled: int = 8  # commits between two changes of the arm, at least
    trouble: float = 0.035  # share of the plain speed that drafting must gain to be worth its trouble
    hysteresis: float = 0.015  # on top of it, for a change between drafting and not
    rivalry: float = 0.04  # share of their speed between two arms that both draft: speeds change with the text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowTuning:
    """Of the cloud's half (``scheduling.goodput_policy``)."""

    useful: float = 0.1  # acceptance below which no step waits for a draft
    worthwhile: float = 0.01  # share by which a step's drafts must raise its tokens a second: estimates err
    dearer: float = 1.1  # times what they are expected to cost: those drafts are chosen of which too much is expected
    farther: float = 1.5  # times the largest step that was seen is how large one may be
    together: int = 8  # sequences at most that wait for each other's drafts
    plain_every: int = 128  # steps after which one without drafts shows whether they still pay
