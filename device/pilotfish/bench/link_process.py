"""Links between device and verifier: processes of the simulator's emulator, each on a port that the system chose."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import threading
from typing import Final

from pilotfish.bench.values import number
from pilotfish.processes import end_process
from pilotfish.signals import held
from pilotfish_core.errors import InvalidParameter, LocalError, PilotfishError

START_TIMEOUT_S: Final = 60.0
NOWHERE: Final = "127.0.0.1:9"  # of a link that is only tried; nothing connects to it
PASSED_ON: Final = ("distribution", "rate", "rate_up", "rate_down", "queue", "loss")  # as the emulator names them
_COMPLAINT: Final = "pilotfish-sim: "


@dataclasses.dataclass(frozen=True, slots=True)
class LinkOptions:
    """What all links have in common. ``others``: options of ``pilotfish-sim link`` and their values, as given."""

    jitter_ms: float = 0.0
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> LinkOptions:
        """From the command line. Raises InvalidParameter for the jitter; the rest is the emulator's to read."""
        given = ((name, getattr(arguments, name)) for name in PASSED_ON)
        others = tuple((f"--{name.replace('_', '-')}", str(value)) for name, value in given if value is not None)
        return cls(number("--jitter", arguments.jitter, 0, 60_000, "milliseconds"), others)

    @property
    def spreads_evenly(self) -> bool:
        """Whether the jitter is evenly around the round trip, which it then cannot be above."""
        return dict(self.others).get("--distribution", "uniform") == "uniform"

    def direct(self, rtt_ms: float) -> bool:
        """Whether no link is needed: the verifier's own address does."""
        return not rtt_ms and not self.jitter_ms and not self.others

    def flags(self, rtt_ms: float) -> list[str]:
        """For the emulator."""
        return [
            f"--rtt={rtt_ms:f}ms",
            f"--jitter={self.jitter_ms:f}ms",
            *(f"{option}={value}" for option, value in self.others),
        ]

    def as_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        jitter = {"--jitter": f"{self.jitter_ms:g}ms"} if self.jitter_ms else {}
        return jitter | dict(self.others)


class LinkProcess:
    """A link to one address, ``host:port``. A context manager; on entry it is listening.

    Raises InvalidParameter for flags that the emulator refuses, LocalError when it does not start.
    """

    def __init__(self, to: str, flags: list[str]) -> None:
        self._command = [sys.executable, "-m", "pilotfish_sim", "link", f"--to={to}", "--json", *flags]
        self._command += ["--control"]  # then it ends with this process, however that ends
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def __enter__(self) -> LinkProcess:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it properly; for good when that takes long, or when a signal says to hurry."""
        process, self._process = self._process, None
        if process is not None:
            end_process(process)

    def _start(self) -> None:
        with held():
            process = self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        # One that neither listens nor ends is ended, and then says no more than the one that failed.
        timer = threading.Timer(START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
        finally:
            timer.cancel()
        if not line:
            raise _failure(process.communicate()[1])
        self.address = json.loads(line)["address"]


def _failure(errors: str) -> PilotfishError:
    """What the emulator complained about, as ours."""
    last = (errors.strip().splitlines() or ["no answer in time"])[-1]
    if last.startswith(_COMPLAINT):
        return InvalidParameter(f"the link: {last.removeprefix(_COMPLAINT)}")
    usage, refused, reason = last.partition(": error: ")  # as argparse says it
    if refused:
        return InvalidParameter(f"the link: {reason}")
    return LocalError(f"the link did not start: {usage}")
