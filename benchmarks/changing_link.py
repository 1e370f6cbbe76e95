"""A link that changes in mid-answer: from 10 to 200 ms and back, and one that is cut for five seconds.

    python -m benchmarks.changing_link [--prompts 4] [--max-tokens 320] [--json OUT] [--draft DIR]

The same answers by the cloud alone, with the device drafting, and as the policy chooses, over a link process of the
emulator that changes at fixed times after the answer began, the same for every arm. An answer's text must be the same
in all of them. The policy *settles* when it has changed its arm for the last time before the link changes again: the
seconds are counted from the change. Verifier and device are pinned to a processor each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish.bench.machine import load, machine
from pilotfish.bench.pinning import pinned
from pilotfish.bench.prompts import PROMPTS, WARM_UP
from pilotfish.client import AsyncClient
from pilotfish.demo.stage import LAYERS, VerifierProcess, exported_draft, find_reference, inflated_target


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """Lines for the emulator's control, each so many seconds after an answer began; ``changed``: when the link is
    another one thereby, which for a cut is its end.
    """

    name: str
    changes: tuple[tuple[float, str], ...]
    changed: tuple[float, ...] = ()


SCENARIOS: Final = (
    Scenario("10 to 200 ms and back", ((2.0, "rtt 200ms"), (5.5, "rtt 10ms")), (2.0, 5.5)),
    Scenario("cut for 5 s", ((2.0, "stall 5s"),), (7.0,)),
)
ARMS: Final = ("cloud", "device-async", "auto")


class ControlledLink:
    """A process of the emulator that takes changes on its standard input. A context manager."""

    def __init__(self, to: str) -> None:
        command = [sys.executable, "-m", "pilotfish_sim", "link", "--to", to, "--rtt", "10ms", "--control", "--json"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address: str = json.loads(self._process.stdout.readline())["address"]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Change the link now."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> ControlledLink:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


async def one_answer(
    client: AsyncClient, link: ControlledLink, scenario: Scenario, prompt: Sequence[int], max_tokens: int
) -> dict[str, Any]:
    """One answer over the changing link, and when the policy changed its arm."""
    link.say("rtt 10ms")
    loop = asyncio.get_running_loop()
    stream = await client.generate(prompt, max_tokens=max_tokens, temperature=0.8, seed=7, ignore_eos=True)
    began = loop.time()
    timers = [loop.call_at(began + at, link.say, line) for at, line in scenario.changes]
    arms: list[tuple[float, str]] = []
    async for _ in stream:
        policy = stream._driver._core.policy  # type: ignore[union-attr]
        if not arms or arms[-1][1] != policy.arm.value:
            arms.append((loop.time() - began, policy.arm.value))
    result = await stream.result()
    for timer in timers:
        timer.cancel()
    borders = [*scenario.changed, loop.time() - began]
    settled = [
        max((at - begin for at, _ in arms if begin < at < end), default=0.0)
        for begin, end in itertools.pairwise(borders)
    ]
    return {
        "tokens_per_s": result.metrics.tokens_per_s,
        "seconds": result.metrics.elapsed_s,
        "arms": arms,
        "settled_s": settled,
        "reconnects": result.metrics.reconnects,
        "token_ids": result.token_ids,
    }


async def measure(server: str, draft: Path, scenario: Scenario, prompts: int, max_tokens: int) -> list[dict[str, Any]]:
    """All arms in one scenario, taking turns at each prompt."""
    answers: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    async with contextlib.AsyncExitStack() as stack:
        link = stack.enter_context(ControlledLink(server.removeprefix("grpc://")))
        clients = {arm: AsyncClient(link.address, draft=draft, arm=arm) for arm in ARMS}
        for client in clients.values():
            await stack.enter_async_context(client)
            await client.prepare()
            await one_answer(client, link, Scenario("none", ()), client.tokenizer.encode(WARM_UP), 64)
        for index in range(prompts):
            for turn in range(len(ARMS)):
                arm = ARMS[(index + turn) % len(ARMS)]
                ids = clients[arm].tokenizer.encode(PROMPTS[index])
                answers[arm].append(await one_answer(clients[arm], link, scenario, ids, max_tokens))
    texts = [answer["token_ids"] for answer in answers["cloud"]]
    return [row_of(scenario, arm, answers[arm], answers["cloud"], texts) for arm in ARMS]


def row_of(
    scenario: Scenario, arm: str, own: list[dict[str, Any]], cloud: list[dict[str, Any]], texts: list[tuple[int, ...]]
) -> dict[str, Any]:
    """One arm in one scenario."""
    ratios = [one["tokens_per_s"] / alone["tokens_per_s"] for one, alone in zip(own, cloud, strict=True)]
    return {
        "scenario": scenario.name,
        "arm": arm,
        "tokens_per_s": statistics.median(one["tokens_per_s"] for one in own),
        "ratio_to_cloud": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "settled_s": max(seconds for one in own for seconds in one["settled_s"]),
        "reconnects": sum(one["reconnects"] for one in own),
        "identical": [one["token_ids"] for one in own] == texts,
        "answers": [{name: value for name, value in one.items() if name != "token_ids"} for one in own],
    }


def line(row: dict[str, Any]) -> str:
    """One row, to be read."""
    return (
        f"{row['scenario']:24}{row['arm']:14}{row['tokens_per_s']:7.1f} tokens/s, {row['ratio_to_cloud']:.2f} of the "
        f"cloud alone (lowest {row['lowest_ratio']:.2f}), settled {row['settled_s']:.1f} s after a change, "
        f"{row['reconnects']} reconnects, {'identical' if row['identical'] else 'DIFFERENT TEXT'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--draft", type=Path, help="exported folder (default: the reference draft, int8)")
    parser.add_argument("--target-layers", type=int, default=LAYERS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    given = parser.parse_args()
    reference = find_reference(None)
    work = reference.parent / "build" / "demo"
    target, draft = (
        inflated_target(reference, work, given.target_layers),
        given.draft or exported_draft(reference, work, "int8"),
    )
    where, rows = machine(), list[dict[str, Any]]()
    verifier = VerifierProcess(target, "--dtype", "bfloat16", "--deterministic")
    with pinned() as pins, contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(verifier.stop)
        with pins.starting_verifier():
            verifier.start()
        verifier.wait_ready()
        for scenario in SCENARIOS:
            rows += asyncio.run(measure(verifier.address, draft, scenario, given.prompts, given.max_tokens))
            for row in rows[-len(ARMS) :]:
                print(line(row), flush=True)
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.changing_link", *sys.argv[1:]])
        report = {"command": command, "machine": where, "load_at_end": load(), "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
