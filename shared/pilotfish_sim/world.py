"""What a scenario says of links, devices and prices; units are in the names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.tuning import DraftTuning
from pilotfish_sim.fields import Section, Wrong, checked, choice, constants, flag, integer, number, numbers, text
from pilotfish_sim.links import Change, Cut, Jitter, LinkSpec, load_trace


def _cuts(value: Any) -> tuple[Cut, ...]:
    expected = "a list of cuts such as {begin_s: 10, length_s: 5, reset: true}"
    if not isinstance(value, list | tuple):
        raise Wrong(expected)
    cuts = []
    for one in value:
        if isinstance(one, Cut):
            cuts.append(one)
            continue
        if not isinstance(one, Mapping) or not {"begin_s", "length_s"} <= set(one) <= {"begin_s", "length_s", "reset"}:
            raise Wrong(expected)
        cuts.append(Cut(float(one["begin_s"]), float(one["length_s"]), reset=bool(one.get("reset", False))))
    return tuple(cuts)


def _changes(value: Any) -> tuple[Change, ...]:
    expected = "a list of changes such as {at_s: 5, rtt_ms: 200, jitter_ms: 5}, in the order of their times"
    if not isinstance(value, list | tuple):
        raise Wrong(expected)
    changes = []
    for one in value:
        if isinstance(one, Change):
            changes.append(one)
            continue
        if not isinstance(one, Mapping) or not {"at_s", "rtt_ms"} <= set(one) <= {"at_s", "rtt_ms", "jitter_ms"}:
            raise Wrong(expected)
        jitter = one.get("jitter_ms")
        changes.append(Change(float(one["at_s"]), one["rtt_ms"] / 1e3, None if jitter is None else jitter / 1e3))
    return tuple(changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link(Section):
    """A device's link to the verifier. ``jitter_ms`` is that of the round trip, see ``links.Jitter``.

    ``overhead_bytes``: of headers on each message (gRPC 5, HTTP/2 9, TLS 22, TCP/IP 52). ``connect_round_trips``:
    before the first stream of a device (TCP 1, TLS 1). ``wake_ms``: more for what is sent after ``sleep_s`` of silence
    (a radio that has to be connected again). ``radio_w``: what the radio draws while an answer streams.
    """

    section: ClassVar[str] = "link"

    rtt_ms: float = number(0.0, 0.0, 3.6e6, "milliseconds")
    jitter_ms: float = number(0.0, 0.0, 3.6e6, "milliseconds")
    jitter: Jitter = choice(Jitter.UNIFORM, Jitter)
    rate_up_mbit: float | None = number(None, 0.0, 1e6, "Mbit/s", above=True)
    rate_down_mbit: float | None = number(None, 0.0, 1e6, "Mbit/s", above=True)
    trace_up: str = text("")
    trace_down: str = text("")
    loss: float = number(0.0, 0.0, 0.49)
    cuts: tuple[Cut, ...] = checked((), _cuts)
    changes: tuple[Change, ...] = checked((), _changes)
    overhead_bytes: int = integer(88, 0, 65536)
    connect_round_trips: float = number(0.0, 0.0, 10.0)
    wake_ms: float = number(0.0, 0.0, 1e5, "milliseconds")
    sleep_s: float = number(10.0, 0.0, 1e6, "seconds")
    radio_w: float = number(0.0, 0.0, 100.0, "watts")

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in ("up", "down"):
            if getattr(self, f"trace_{side}") and getattr(self, f"rate_{side}_mbit") is not None:
                rate = getattr(self, f"rate_{side}_mbit")
                raise self.wrong(f"rate_{side}_mbit", rate, f"nothing beside link.trace_{side}, which says the rate")
        if self.jitter_ms > self.rtt_ms and self.jitter is Jitter.UNIFORM:
            raise self.wrong("jitter_ms", self.jitter_ms, f"at most link.rtt_ms, {self.rtt_ms:g}, when it is uniform")
        try:
            self.spec(0)
        except InvalidParameter as error:
            raise InvalidParameter(f"link: {error.message}") from None

    def spec(self, seed: int) -> LinkSpec:
        """The model of one such link; jitter and losses follow ``seed``. Raises InvalidParameter for a trace."""
        return LinkSpec(
            rtt_s=self.rtt_ms / 1e3,
            jitter_s=self.jitter_ms / 1e3,
            jitter=self.jitter,
            rate_up=None if self.rate_up_mbit is None else self.rate_up_mbit * 1e6,
            rate_down=None if self.rate_down_mbit is None else self.rate_down_mbit * 1e6,
            loss=self.loss,
            cuts=self.cuts,
            changes=self.changes,
            trace_up=load_trace(Path(self.trace_up)) if self.trace_up else (),
            trace_down=load_trace(Path(self.trace_down)) if self.trace_down else (),
            seed=seed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device(Section):
    """A user's device. ``draft_ms``: a draft token; ``prefill_ms``: each token that the drafter takes in before it;
    ``first_ms``: opening the drafter for an answer; ``task_ms``: each time that it is asked; ``spread``: factors of all
    these, one of which is drawn each time. ``overhead_ms``: from a frame to the core, and from the core to the link;
    ``frame_us``: that the device is busy with each frame that comes, one after the other. ``power_w``: drawn while it
    drafts. ``one_client``: all of a scenario's devices are streams of one client, with one drafter and one memory, as
    in ``pilotfish bench``. ``window`` and ``adaptive`` are DeviceConfig's.
    """

    section: ClassVar[str] = "device"

    draft_ms: float = number(10.0, 0.0, 1e5, "milliseconds")
    prefill_ms: float = number(0.0, 0.0, 1e5, "milliseconds")
    first_ms: float = number(0.0, 0.0, 1e6, "milliseconds")
    task_ms: float = number(0.0, 0.0, 1e5, "milliseconds")
    spread: tuple[float, ...] = numbers(0.01, 100.0)
    frame_us: float = number(0.0, 0.0, 1e6, "microseconds")
    overhead_ms: float = number(0.0, 0.0, 1e4, "milliseconds")
    window: int = integer(16, 1, 1024, "draft tokens")
    adaptive: bool = flag(True)
    one_client: bool = flag(False)
    power_w: float = number(0.0, 0.0, 1e4, "watts")
    battery_wh: float | None = number(None, 0.0, 1e6, "watt-hours", above=True)
    policy: str = text("")  # module:Class of a DraftPolicy under study
    tuning: DraftTuning = constants(DraftTuning)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices(Section):
    """US dollars: of a GPU for an hour, of a gigabyte that leaves the cloud."""

    section: ClassVar[str] = "prices"

    gpu_hour: float = number(0.0, 0.0, 1e4, "dollars")
    egress_gb: float = number(0.0, 0.0, 1e3, "dollars")
