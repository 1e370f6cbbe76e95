"""Who drafts and at what pace: the arms of the latency-aware split policy and what the two sides tell each other.

An arm is a pacing times the sources that feed one draft buffer (DESIGN section 4). The device chooses and says so
(``Mode``); the app's wishes travel as a ``Hint``; the cloud says what it would gain by drafting itself (``Advice``).
"""

from __future__ import annotations

import dataclasses
import enum


class Pacing(enum.Enum):
    """How device and cloud wait for each other."""

    FREE = "free"  # neither waits, but for the cloud's short holds
    LOCKSTEP = "lockstep"  # each waits for the other: the stop-and-wait of the literature
    PAUSED = "paused"  # the device does not draft


class CloudDraft(enum.IntEnum):
    """What the cloud itself drafts with, where the device has nothing. In order of what it costs."""

    NONE = 0
    NGRAM = 1  # prompt lookup
    MODEL = 2  # a draft model beside the target


class Arm(enum.StrEnum):
    """The named arms. AUTO lets the policy choose among the others that need a verifier."""

    AUTO = "auto"
    CLOUD = "cloud"  # the target alone
    CO_LOCATED = "co-located"  # the cloud drafts with the best that it has
    CO_LOCATED_NGRAM = "co-located-ngram"
    CO_LOCATED_MODEL = "co-located-model"
    LOCKSTEP = "device-lockstep"
    ASYNC = "device-async"
    DEVICE_ONLY = "device-only"  # no verifier: the draft model's own text, marked unverified

    @property
    def device_drafts(self) -> bool:
        """Whether the device's drafter works in it."""
        return self in (Arm.LOCKSTEP, Arm.ASYNC, Arm.DEVICE_ONLY)


class Objective(enum.StrEnum):
    """What AUTO is to make the best of."""

    LATENCY = "latency"  # tokens a second
    CLOUD_COST = "cloud-cost"  # the target's time for a token, while never slower than the target alone
    BYTES = "bytes"  # nothing is sent that may be in vain: the device does not draft
    BATTERY = "battery"  # the device computes nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Mode:
    """How the device drafts from here on, and what the cloud may draft with where the device has nothing."""

    pacing: Pacing = Pacing.FREE
    cloud_draft: CloudDraft = CloudDraft.NONE


@dataclasses.dataclass(frozen=True, slots=True)
class Hint:
    """What the app knows about the device."""

    battery_low: bool = False
    metered_network: bool = False
    prefer_fast: bool = False

    def objective(self, otherwise: Objective) -> Objective:
        """What to strive for; speed is asked for by name, so it wins, then the battery."""
        if self.prefer_fast:
            return Objective.LATENCY
        if self.battery_low:
            return Objective.BATTERY
        return Objective.BYTES if self.metered_network else otherwise


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """How fast and how well a device drafts, as it has seen in earlier generations.

    It costs nobody else anything to believe it: it decides how long the device's own steps wait, and for a few
    comparisons what its drafts are thought to be worth.
    """

    round_trip_s: float
    draft_s: float  # for a token
    acceptance: float


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """What the cloud knows and the device cannot.

    ``step_s``: seconds of a decode step without a draft, at the present load. ``cloud_gain``: expected speed of this
    answer when the cloud drafts with ``cloud_draft`` over that without any draft, minus 1; ``cloud_cost``: the target's
    time for a token then, plain decoding being 1. ``max_draft_tokens``: more in one step are not worth their rows now;
    0 asks the device not to draft.
    """

    step_s: float
    cloud_draft: CloudDraft = CloudDraft.NONE
    cloud_gain: float = 0.0
    cloud_cost: float = 1.0
    max_draft_tokens: int | None = None
    reason: str = ""
