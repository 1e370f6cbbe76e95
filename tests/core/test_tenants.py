"""Tenants beside each other: one with many generations and bad drafts takes nothing from one with a single one."""

from __future__ import annotations

import pytest

from pilotfish_core.scheduling import FixedRows, Goodput, Scheduler, SchedulerConfig, SpeculationPolicy
from tests.core.virtual_cloud import Stream, VirtualCloud

DRAFTS = 8


def linear(rows: int, context: int) -> float:
    return 0.03 + 0.0002 * rows


def scheduler(
    policy: SpeculationPolicy | None = None, *, blocks: int = 64 * 64, seats: int = 64, rows: int = 128
) -> Scheduler:
    config = SchedulerConfig(
        max_model_len=1024,
        num_blocks=blocks,
        max_num_seqs=seats,
        max_num_batched_tokens=rows,
        max_draft_rows=DRAFTS,
    )
    return Scheduler(config, policy or FixedRows(DRAFTS))


def many(count: int, *, prompt: int = 8, first: int = 0, tokens: int = 100) -> list[Stream]:
    """Whose junk is there at once, so that every step has it to verify."""
    return [
        Stream(f"many {number}", prompt=prompt, tokens=tokens, tenant="many", response=0.0, gap=0.0)
        for number in range(first, first + count)
    ]


class Watch:
    """Rows that a tenant got, and its fair share of each step from its arrival on."""

    def __init__(self, cloud: VirtualCloud, tenant: str, tenants: int = 2) -> None:
        self.cloud, self.tenant, self.tenants = cloud, tenant, tenants
        self.got = self.fair = 0.0

    def run(self, until: float) -> float:
        config = self.cloud.scheduler.config
        for step in self.cloud.steps(until):
            wants = 0
            for stream in self.cloud.streams.values():
                one = stream.sequence
                if one.tenant == self.tenant:
                    drafts = min(one.core.buffered, DRAFTS, one.max_len - one.committed_len - 1)
                    wants += 1 + drafts if one.decoding else one.uncomputed
            self.fair += min(wants, config.max_num_batched_tokens / self.tenants)
            self.got += sum(entry.rows for entry in step.scheduled if entry.sequence.tenant == self.tenant)
        return self.got / self.fair


@pytest.mark.parametrize(
    ("seats", "rows", "blocks"),
    [
        pytest.param(64, 128, 4096, id="rows are short"),
        pytest.param(8, 16, 4096, id="seats and rows are short"),
        pytest.param(64, 128, 64, id="blocks are short"),
    ],
)
@pytest.mark.parametrize("prompt", [8, 300])
def test_one_generation_beside_fifty_with_junk_drafts_keeps_its_share(
    seats: int, rows: int, blocks: int, prompt: int
) -> None:
    cloud = VirtualCloud(scheduler(seats=seats, rows=rows, blocks=blocks), linear)
    cloud.add(*many(50))
    cloud.run(2.0)
    cloud.add(Stream("one", prompt=prompt, tokens=200, tenant="one", acceptance=0.8, response=0.0, gap=0.0005))
    watch = Watch(cloud, "one")
    share = 0.0
    while "one" in cloud.streams:
        cloud.add(*many(50 - len(cloud.streams), first=len(cloud.tokens)))  # there are always fifty
        share = watch.run(cloud.now + 0.5)
    assert share >= 0.8
    cloud.scheduler.check_integrity()


def test_with_the_goodput_policy_the_one_gets_its_useful_rows() -> None:
    cloud = VirtualCloud(scheduler(Goodput(DRAFTS)), lambda rows, context: 0.03 + 0.00001 * rows)
    cloud.add(*many(50, tokens=500))
    cloud.add(Stream("one", tokens=500, tenant="one", acceptance=0.9, response=0.0, gap=0.0005))
    assert Watch(cloud, "one").run(10.0) >= 0.8


def test_prompts_of_two_tenants_share_the_rows_whatever_their_number() -> None:
    cloud = VirtualCloud(scheduler(), linear)
    cloud.add(*many(50, prompt=400))
    cloud.add(Stream("one", prompt=400, tokens=2, tenant="one"))
    for number, step in enumerate(cloud.steps(10.0)):
        if number in range(1, 6):
            assert sum(entry.rows for entry in step.scheduled if entry.sequence.tenant == "one") >= 63


def test_a_tenant_of_twice_the_weight_gets_twice_the_rows() -> None:
    cloud = VirtualCloud(scheduler(seats=12, rows=64), linear)
    for number in range(20):
        for tenant, weight in (("light", 1.0), ("heavy", 2.0)):
            stream = Stream(
                f"{tenant} {number}", prompt=50, tokens=900, tenant=tenant, weight=weight, response=0.0, gap=0.0
            )
            cloud.add(stream)
    rows = {"light": 0, "heavy": 0}
    for step in cloud.steps(30.0):
        for entry in step.scheduled:
            rows[entry.sequence.tenant] += entry.rows
    assert rows["heavy"] / rows["light"] == pytest.approx(2.0, rel=0.1)


def test_a_tenant_that_was_idle_does_not_shut_the_others_out() -> None:
    cloud = VirtualCloud(scheduler(seats=8, rows=32), linear)
    cloud.add(*many(16, tokens=400))
    cloud.run(5.0)
    for number in range(16):
        cloud.add(Stream(f"late {number}", tokens=400, tenant="late", response=0.0, gap=0.0))
    rows = {"many": 0, "late": 0}
    for step in cloud.steps(10.0):
        for entry in step.scheduled:
            rows[entry.sequence.tenant] += entry.rows
    assert rows["late"] / rows["many"] == pytest.approx(1.0, rel=0.1)


def test_a_long_prompt_gets_in_between_short_ones() -> None:
    cloud = VirtualCloud(scheduler(blocks=64, seats=32), linear)
    for number in range(200):
        cloud.add(Stream(f"short {number}", prompt=20, tokens=60, tenant=f"tenant {number % 5}", window=0))
    cloud.run(1.0)
    cloud.add(Stream("long", prompt=900, tokens=10, tenant="tenant 7", window=0))
    cloud.run(20.0)
    ended = list(cloud.tokens)
    assert cloud.tokens["long"] == 10
    assert sum(cloud.tokens[key] == 60 for key in ended) < 200  # before the last of the short ones
    cloud.run(200.0)
    assert not cloud.streams


def test_seats_that_change_hands_cost_little() -> None:
    cloud = VirtualCloud(scheduler(seats=8, rows=64), linear)
    cloud.add(*many(40, tokens=60))
    for number in range(40):
        cloud.add(Stream(f"late {number}", tokens=60, tenant="late", window=0))
    cloud.run(100.0)
    assert not cloud.streams
    assert cloud.scheduler.counts.preemptions <= 8
