"""What every implementation of ``SharedState`` must do. Leases run by the store's own clock, so they are short here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilotfish_cloud.shared_state.interface import (
    Held,
    Limits,
    Report,
    SharedState,
    TenantReport,
    UsageKey,
    View,
)

FREE = Limits(max_generations=None, rows_per_s=None)
TWO = Limits(max_generations=2, rows_per_s=None)
SLOW = Limits(max_generations=None, rows_per_s=0.001, capacity=100.0)  # hardly refilled while a test runs
DAY = "2026-01-31"


def report(number: int, *, replica: str = "r1", **fields: Any) -> Report:
    merged: dict[str, Any] = {"replica": replica, "source": replica, "number": number, "beat": "{}"} | fields
    return Report(**merged)


async def until(condition: Callable[[], Awaitable[bool]], *, patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.005)


class StateContract:
    """Subclasses give the fixture ``state``: an empty one."""

    async def test_places_of_all_replicas(self, state: SharedState) -> None:
        assert (await state.take("a", TWO, Held("g1", "r1/1"))).refused == ""
        assert (await state.take("a", TWO, Held("g2", "r2/1"))).places == 2
        third = await state.take("a", TWO, Held("g3", "r3/1"))
        assert (third.refused, third.places) == ("places", 2)
        assert (await state.take("b", TWO, Held("g3", "r3/1"))).refused == ""

    async def test_a_free_place_is_told_with_the_next_take(self, state: SharedState) -> None:
        for name in ("g1", "g2"):
            await state.take("a", TWO, Held(name, "r1/1"))
        taken = await state.take("a", TWO, Held("g3", "r1/1"), released=(Held("g1", "r1/1"),))
        assert (taken.refused, taken.places) == ("", 2)

    async def test_a_generation_takes_its_own_place_over(self, state: SharedState) -> None:
        for name in ("g1", "g2"):
            await state.take("a", TWO, Held(name, "r1/1"))
        assert (await state.take("a", TWO, Held("g1", "r2/2"))).places == 2
        # Its first replica hears of the end later, and must not free what is another one's by now.
        told = TenantReport(limits=TWO, held=(Held("g1", "r1/1"),), released=(Held("g1", "r1/1"),))
        await state.report(report(1, tenants={"a": told}))
        assert (await state.take("a", TWO, Held("g3", "r1/1"))).refused == "places"

    async def test_a_place_expires_with_its_replica(self, state: SharedState) -> None:
        await state.take("a", TWO, Held("g1", "r1/1"), lease_s=0.2)
        await state.take("a", TWO, Held("g2", "r1/1"), lease_s=0.2)

        async def free() -> bool:
            return (await state.take("a", TWO, Held("g3", "r2/1"))).refused == ""

        assert not await free()
        await until(free)

    async def test_a_renewed_place_stays(self, state: SharedState) -> None:
        await state.take("a", TWO, Held("g1", "r1/1"), lease_s=0.1)
        await state.report(report(1, tenants={"a": TenantReport(limits=TWO, held=(Held("g1", "r1/1"),))}, lease_s=60))
        await state.take("a", TWO, Held("g2", "r1/1"), lease_s=0.1)

        async def one_is_left() -> bool:
            return (await state.take("a", TWO, Held("g3", "r2/1"), lease_s=0.001)).places == 2

        await until(one_is_left)
        assert (await state.take("a", Limits(max_generations=1, rows_per_s=None), Held("g4", "r2/1"))).refused

    async def test_rows_of_all_replicas(self, state: SharedState) -> None:
        first = await state.take("a", SLOW, Held("g1", "r1/1", 60))
        assert first.refused == ""
        assert first.level == pytest.approx(40, abs=0.1)
        second = await state.take("a", SLOW, Held("g2", "r2/1", 60))
        assert second.refused == "rows"
        assert second.wait_s >= 3600  # as it is, or as much as anybody is told

    async def test_repeating_a_take_charges_once(self, state: SharedState) -> None:
        for _ in range(3):
            taken = await state.take("a", SLOW, Held("g1", "r1/1", 60))
        assert taken.level == pytest.approx(40, abs=0.1)

    async def test_a_generation_that_moves_is_charged_and_not_refused(self, state: SharedState) -> None:
        await state.take("a", SLOW, Held("g1", "r1/1", 60))
        moved = await state.take("a", SLOW, Held("g1", "r2/2", 60))
        assert moved.refused == ""
        assert moved.level == pytest.approx(-20, abs=0.1)

    async def test_a_report_charges_once(self, state: SharedState) -> None:
        told = TenantReport(limits=SLOW, charge=150)
        for _ in range(3):
            view = await state.report(report(1, tenants={"a": told}))
            assert view.levels["a"] == pytest.approx(-50, abs=0.1)
        view = await state.report(report(2, tenants={"a": TenantReport(limits=SLOW, charge=-500)}))
        assert view.levels["a"] == pytest.approx(100, abs=0.1)

    async def test_a_place_that_is_not_known_is_charged_when_it_is_told(self, state: SharedState) -> None:
        told = TenantReport(limits=SLOW, held=(Held("g1", "r1/1", 30),))
        for number in (1, 2):
            view = await state.report(report(number, tenants={"a": told}))
            assert view.levels["a"] == pytest.approx(70, abs=0.1)

    async def test_a_lost_level_begins_with_what_a_replica_knows(self, state: SharedState) -> None:
        taken = await state.take("a", SLOW, Held("g1", "r1/1", 10), level=15.0)
        assert taken.level == pytest.approx(5, abs=0.1)
        view = await state.report(report(1, tenants={"b": TenantReport(limits=SLOW, level=-7.0)}))
        assert view.levels["b"] == pytest.approx(-7, abs=0.1)

    async def test_a_bucket_fills_by_its_rate(self, state: SharedState) -> None:
        quick = Limits(max_generations=None, rows_per_s=1000.0, capacity=100.0)
        await state.take("a", quick, Held("g1", "r1/1", 100))

        async def full() -> bool:
            return (await state.report(report(1, tenants={"a": TenantReport(limits=quick)}))).levels["a"] == 100

        await until(full)

    async def test_usage_is_counted_once(self, state: SharedState) -> None:
        usage = {UsageKey(DAY, "a b:c", "prompt_tokens"): 7, UsageKey(DAY, "", "committed_tokens"): 3}
        for _ in range(2):
            await state.report(report(1, usage=usage))
        await state.report(report(1, replica="r2", usage=usage))
        await state.report(report(2, usage={UsageKey("2026-02-01", "a b:c", "prompt_tokens"): 1}))
        assert await state.usage(DAY) == {"a b:c": {"prompt_tokens": 14}, "": {"committed_tokens": 6}}
        assert await state.usage("2026-02-02") == {}

    async def test_a_process_that_takes_over_a_name_counts_from_one_again(self, state: SharedState) -> None:
        usage = {UsageKey(DAY, "a", "committed_tokens"): 5}
        charge = {"a": TenantReport(limits=SLOW, charge=10)}
        for number in (1, 2, 3):
            await state.report(report(number, source="first", usage=usage, tenants=charge))
        view = await state.report(report(1, source="second", usage=usage, tenants=charge))
        assert view.levels["a"] == pytest.approx(60, abs=0.1)
        assert await state.usage(DAY) == {"a": {"committed_tokens": 20}}

    async def test_revoked_keys(self, state: SharedState) -> None:
        assert (await state.report(report(1))).revoked == frozenset()
        await state.revoke("0123456789ab")
        view = await state.report(report(2, revoked=frozenset({"ba9876543210"})))
        assert view.revoked == {"0123456789ab", "ba9876543210"}

    async def test_replicas_that_are_there(self, state: SharedState) -> None:
        await state.report(report(1, replica="r1", beat='{"n": 1}', beat_s=0.1))
        view = await state.report(report(1, replica="r2", beat='{"n": 2}', beat_s=60))
        assert view.beats.get("r2") == '{"n": 2}'
        views: list[View] = []

        async def one_is_gone() -> bool:
            views.append(await state.report(report(2, replica="r2", beat="{}", beat_s=60)))
            return views[-1].beats == {"r2": "{}"}

        await until(one_is_gone)

    async def test_an_unlimited_tenant_has_no_level(self, state: SharedState) -> None:
        assert (await state.take("a", FREE, Held("g", "r/1", 10**6))).level is None
        view = await state.report(report(1, tenants={"a": TenantReport(limits=FREE, held=(Held("g", "r/1"),))}))
        assert view.levels == {}
        await state.ping()
