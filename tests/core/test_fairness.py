"""Virtual token counters: who comes first when there is not enough for all, and what idle time is worth (nothing)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.scheduling import TenantCounters

NAMES = ("a", "b", "c", "d")


def counters(weights: dict[str, float], charged: dict[str, int] | None = None) -> TenantCounters:
    made = TenantCounters()
    for tenant, weight in weights.items():
        made.join(tenant, weight)
        made.charge(tenant, (charged or {}).get(tenant, 0))
    return made


tenants = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.25, 1.0, 2.0, 3.0]), min_size=1)


@given(tenants, st.data(), st.integers(0, 300))
def test_rows_go_to_the_lowest_counter(weights: dict[str, float], data: st.DataObject, budget: int) -> None:
    charged = {name: data.draw(st.integers(0, 100)) for name in weights}
    wanted = {name: data.draw(st.integers(0, 120)) for name in weights}
    taken = {name: data.draw(st.integers(0, 10)) for name in weights}
    made = counters(weights, charged)
    shares = made.divide(wanted, budget, taken)
    assert sum(shares.values()) == min(sum(wanted.values()), budget)
    assert all(0 <= shares[name] <= wanted[name] for name in weights)
    reached = {name: (charged[name] + taken[name] + shares[name]) / weights[name] for name in weights}
    for short in weights:
        if shares[short] < wanted[short]:  # nobody who got anything is ahead of it by more than a row
            for other in weights:
                if shares[other]:
                    assert reached[other] <= reached[short] + 1 / weights[short] + 1 / weights[other] + 1e-6


@given(tenants, st.integers(1, 200), st.integers(20, 100))
def test_tenants_that_always_want_more_get_rows_by_weight(weights: dict[str, float], budget: int, steps: int) -> None:
    made = counters(weights)
    got = dict.fromkeys(weights, 0)
    for _ in range(steps):
        for name, rows in made.divide(dict.fromkeys(weights, budget + 1), budget).items():
            made.charge(name, rows)
            got[name] += rows
        made.settle(weights)
    for name, weight in weights.items():
        assert abs(got[name] - steps * budget * weight / sum(weights.values())) <= 1 + max(weights.values()) * len(
            weights
        )


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 50), st.booleans(), st.booleans()), max_size=60))
def test_nobody_saves_up_idle_time_and_debts_stay(events: list[tuple[str, int, bool, bool]]) -> None:
    made = TenantCounters()
    present: set[str] = set()
    for name, rows, comes_or_goes, wants in events:
        if comes_or_goes:
            owed = made.counter(name)
            if name in present:
                made.leave(name)
                present.remove(name)
            else:
                made.join(name)
                present.add(name)
            assert made.counter(name) == owed  # neither forgives anything, nor does it cost
        elif present:
            who = name if name in present else min(present)
            before = {tenant: made.counter(tenant) for tenant in present}
            made.charge(who, rows)
            wanting = {who} if wants else set()
            made.settle(wanting)
            least = min((made.counter(tenant) for tenant in wanting), default=max(map(made.counter, present)))
            for tenant in present:
                assert made.counter(tenant) >= before[tenant]
                if tenant not in wanting:  # it has all that it wants: no credit
                    assert made.counter(tenant) >= least
    assert len(made) == len(present)


def test_one_that_was_away_begins_where_the_others_are() -> None:
    made = counters({"busy": 1.0, "other": 1.0})
    for _ in range(100):
        made.charge("busy", 10)
        made.charge("other", 10)
        made.settle({"busy", "other"})
    made.join("late")
    assert made.counter("late") == 1000
    made.leave("other")
    for _ in range(10):
        made.charge("busy", 10)
        made.settle({"busy"})
    made.join("other")
    assert made.counter("other") == made.counter("busy") == 1100


def test_what_nobody_else_wanted_is_no_debt() -> None:
    made = counters({"big": 1.0, "small": 1.0})
    made.charge("big", 5000)
    made.charge("small", 10)
    made.settle(())
    assert made.counter("small") == made.counter("big") == 5000


def test_a_debt_outlives_leaving() -> None:
    made = counters({"greedy": 1.0, "patient": 1.0})
    made.charge("greedy", 500)
    made.charge("patient", 100)
    made.settle({"greedy", "patient"})
    made.leave("greedy")
    made.join("greedy")
    assert made.counter("greedy") == 500
    made.leave("greedy")
    for _ in range(10):
        made.charge("patient", 100)
        made.settle({"patient"})
    made.join("greedy")
    assert made.counter("greedy") == made.counter("patient") == 1100


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        TenantCounters().join("a", weight)
