"""One run of a scenario: builds the world, lets the clock run, and keeps what was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator

import numpy as np

from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.errors import PilotfishError
from pilotfish_core.modes import Arm
from pilotfish_core.trace import TraceWriter
from pilotfish_sim.answers import Answer
from pilotfish_sim.clock import Clock
from pilotfish_sim.device import Client, Generation
from pilotfish_sim.engine import EngineFigures
from pilotfish_sim.path import Path, Stream
from pilotfish_sim.replica import Replica
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.study import load_class
from pilotfish_sim.text import Text
from pilotfish_sim.workload import Request, WorkloadKind

Progress = Callable[[float], object]  # the share that is done


class SimulationFailed(PilotfishError):
    """A run broke one of the promises that it is there to measure."""

    kind = "internal"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What came of a scenario. ``wall_s``: virtual seconds from the first to the last event of an answer."""

    scenario: Scenario
    answers: tuple[Answer, ...]
    wall_s: float
    events: int
    replicas: tuple[EngineFigures, ...]
    path_bytes_up: int
    path_bytes_down: int

    @property
    def measured(self) -> list[Answer]:
        """Without warm-ups."""
        return [answer for answer in self.answers if answer.measured]


@dataclasses.dataclass(frozen=True, slots=True)
class Traces:
    """Where a run writes what happens, as real commands do: the devices, and the replicas."""

    device: TraceWriter | None = None
    cloud: TraceWriter | None = None


def simulate(scenario: Scenario, progress: Progress | None = None, traces: Traces | None = None) -> Run:
    """Run a scenario. Deterministic: the same scenario gives the same run.

    Raises InvalidParameter for traces that do not fit it, SimulationFailed when an answer is not the target's text.
    """
    with _rare_collections():
        return _World(scenario, progress, traces or Traces()).run()


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """A world is a million objects that live to its end; looking through them for garbage takes a tenth of a run."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _World:
    """The processes of a run."""

    def __init__(self, scenario: Scenario, progress: Progress | None, traces: Traces) -> None:
        self._traces = traces
        self._scenario = scenario
        self._progress = progress
        self._clock = Clock()
        self._replicas = [
            Replica(self._clock, scenario.target, scenario.seed * 1_000_003 + number, traces.cloud)
            for number in range(scenario.target.replicas)
        ]
        self._homes: dict[Stream, Replica] = {}
        self._config = DeviceConfig(
            window=scenario.device.window,
            adaptive=scenario.device.adaptive,
            arm=scenario.arm,
            objective=scenario.objective,
            tuning=scenario.device.tuning,
        )
        self._drafting = scenario.arm.device_drafts or scenario.arm is Arm.AUTO
        self._policy = load_class("device.policy", scenario.device.policy) if scenario.device.policy else None
        self._clients: dict[int, Client] = {}
        self._paths: dict[int, Path] = {}
        self._running: dict[int, Generation] = {}
        self._loops: dict[int, Iterator[Request]] = {}
        self._answers: list[Answer] = []
        self._expected = 0  # answers
        self._asked = 0  # in this round
        self._shared: dict[int, list[int]] = {}

    def run(self) -> Run:
        self._ask_all()
        for cut in self._scenario.link.cuts:
            if cut.reset:
                self._clock.at(cut.begin_s, self._cut)
        self._clock.run()
        if self._running:
            raise SimulationFailed(f"{len(self._running)} answers did not end")
        if not self._answers:
            raise SimulationFailed("nothing was asked for: the workload has no answer that begins in its duration")
        wrong = next((answer for answer in self._answers if not answer.identical and not answer.error), None)
        if wrong is not None:
            raise SimulationFailed(f"answer {wrong.number} is not the target's text: a defect of the cores")
        measured = [answer for answer in self._answers if answer.measured] or self._answers
        return Run(
            scenario=self._scenario,
            answers=tuple(sorted(self._answers, key=lambda answer: answer.number)),
            wall_s=max(answer.last_at for answer in measured) - min(answer.began for answer in measured),
            events=self._clock.events,
            replicas=tuple(replica.engine.figures for replica in self._replicas),
            path_bytes_up=sum(path.bytes_up for path in self._paths.values()),
            path_bytes_down=sum(path.bytes_down for path in self._paths.values()),
        )

    def connect(self, stream: Stream, text: Text) -> None:
        """A stream goes to the replica with the fewest, as a balancer of load would have it."""
        replica = min(self._replicas, key=lambda replica: len(replica.connections))
        self._homes[stream] = replica
        replica.connect(stream, text)

    def disconnect(self, stream: Stream) -> None:
        """A stream is gone."""
        replica = self._homes.pop(stream, None)
        if replica is not None:
            replica.disconnect(stream)

    def _ask_all(self) -> None:
        workload, seed = self._scenario.workload, self._scenario.seed
        if workload.closed:
            for device in range(workload.devices):
                self._loops[device] = workload.loop(device, seed)
                self._ask_next(device)
            self._expected = workload.devices * (workload.warmup + workload.answers)
            return
        for request in workload.requests(seed):
            self._expected += 1
            self._clock.at(request.at, self._ask, request)

    def _ask_next(self, device: int) -> None:
        """The next question of a device in a closed loop, if there is one."""
        request, until = next(self._loops[device], None), self._scenario.workload.duration_s
        if request is not None and (until is None or self._clock.now + request.at < until):
            self._asked += 1
            self._clock.at(self._clock.now + request.at, self._ask, request)

    def _ask(self, request: Request) -> None:
        device = request.device
        client = self._client(device)
        generation = Generation(
            self._clock,
            request,
            self._text(request),
            seed=self._scenario.seed,
            config=self._config,
            drafting=self._drafting,
            client=client,
            path=self._path(device),
            cloud=self,
            done=self._done,
            policy=self._policy,
        )
        self._running[request.number] = generation
        generation.start()

    def _done(self, generation: Generation) -> None:
        del self._running[generation.request.number]
        if generation.answer is not None:
            self._answers.append(generation.answer)
        if self._progress is not None:
            self._progress(self._share())
        if generation.request.device not in self._loops:
            return
        if self._scenario.workload.kind is not WorkloadKind.ROUNDS:
            self._ask_next(generation.request.device)
            return
        self._asked -= 1
        for device in self._loops if not self._asked else ():
            self._ask_next(device)

    def _share(self) -> float:
        workload = self._scenario.workload
        if workload.closed and workload.duration_s is not None:
            return min(self._clock.now / workload.duration_s, 1.0)
        return len(self._answers) / max(self._expected, 1)

    def _cut(self, _: None) -> None:
        for path in self._paths.values():
            path.disconnect(self._scenario.link)
        for generation in list(self._running.values()):
            generation.cut()

    def _client(self, device: int) -> Client:
        key = 0 if self._scenario.device.one_client else device
        if key not in self._clients:
            workload, trace = self._scenario.workload, self._traces.device
            client = None
            if trace is not None:
                client = trace.client(
                    str(self._scenario.arm),
                    rtt_ms=self._scenario.link.rtt_ms,
                    concurrency=workload.devices,
                    warmup=workload.warmup * (workload.devices if self._scenario.device.one_client else 1),
                )
            self._clients[key] = Client(self._scenario.device, self._scenario.seed * 1_000_003 + key, client)
        return self._clients[key]

    def _path(self, device: int) -> Path:
        scenario = self._scenario
        key = 0 if scenario.device.one_client else device
        if key not in self._paths:
            self._paths[key] = Path(
                self._clock,
                scenario.link,
                scenario.link.spec(scenario.seed * 1_000_003 + key),
                device_s=scenario.device.overhead_ms / 1e3,
                service_s=scenario.target.service_ms / 1e3,
                frame_s=scenario.device.frame_us / 1e6,
            )
        return self._paths[key]

    def _text(self, request: Request) -> Text:
        workload = self._scenario.workload
        return Text(
            shared=self._prefix(request.prefix, request.shared),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            acceptance=self._scenario.acceptance,
            own_acceptance=self._scenario.target.draft_acceptance,
            vocabulary=workload.vocabulary,
            repetition=workload.repetition,
            answer=request.number,
            seed=self._scenario.seed,
        )

    def _prefix(self, number: int, length: int) -> list[int]:
        known = self._shared.get(number, [])
        if len(known) < length:
            random = np.random.default_rng((self._scenario.seed, 2, number))
            known = random.integers(0, self._scenario.workload.vocabulary - 1, size=length).tolist()
            self._shared[number] = known
        return known[:length]
