from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pilotfish_core.admission import (
    MAX_HINT_S,
    Admission,
    MemoryAdmission,
    Reservation,
    ServerLimits,
    TenantSettings,
    TokenBucket,
)
from pilotfish_core.errors import DeadlineExceeded, InvalidParameter, Overloaded, PromptTooLong
from pilotfish_core.parameters import SamplingParams
from tests.core.admission_contract import AdmissionContract


class TestMemoryAdmission(AdmissionContract):
    def admission(self, limits: ServerLimits) -> Admission:
        return MemoryAdmission(limits)

    def test_a_tenant_without_generations_and_debts_is_forgotten(self) -> None:
        admission = MemoryAdmission()
        for number in range(100):
            reservation = admission.reserve(f"t{number}", TenantSettings(), rows=1, output=1, now=0.0)
            admission.release(reservation, 1.0)
        assert admission.known_tenants == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"max_generations": 0},
        {"max_generations": True},
        {"max_tokens": 1.5},
        {"rows_per_s": 0},
        {"rows_per_s": math.inf},
        {"burst_s": math.nan},
        {"weight": -1},
        {"weight": "much"},
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=next(iter(fields))):
        TenantSettings(**fields)


def test_what_a_tenant_may_not_ask_for() -> None:
    settings = TenantSettings(max_prompt_tokens=10, max_tokens=20)
    settings.check(10, SamplingParams(max_tokens=20))
    with pytest.raises(PromptTooLong, match="11 tokens; at most 10"):
        settings.check(11, SamplingParams(max_tokens=20))
    with pytest.raises(InvalidParameter, match="max_tokens is 21; expected at most 20"):
        settings.check(10, SamplingParams(max_tokens=21))


def test_a_bucket_keeps_its_level_when_the_clock_stands_or_steps_back() -> None:
    bucket = TokenBucket(10.0, 50.0, now=5.0)
    bucket.take(70, 5.0)
    assert bucket.level(5.0) == bucket.level(4.0) == -20
    assert bucket.level(6.0) == -10
    assert bucket.level(1e9) == 50
    bucket.take(-100, 1e9)
    assert bucket.level(1e9) == 50


LIMITS = ServerLimits(max_generations=5, max_tokens=200, slots=2)
SETTINGS = {
    "free": TenantSettings(),
    "few": TenantSettings(max_generations=2),
    "slow": TenantSettings(rows_per_s=5, burst_s=4),
}


class AdmissionMachine(RuleBasedStateMachine):
    """Any order of reservations, charges, releases and time against a model that keeps a list."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.admission = MemoryAdmission(LIMITS)
        self.now = 0.0
        self.open: list[tuple[Reservation, str, int]] = []
        self.slow_admitted = 0.0  # rows at admission; what was computed beyond them
        self.slow_charged = 0.0
        self.given_back = 0.0

    @rule(
        target=held,
        tenant=st.sampled_from(sorted(SETTINGS)),
        rows=st.integers(1, 60),
        output=st.integers(1, 60),
        patience=st.none() | st.floats(-1, 5),
    )
    def reserve(self, tenant: str, rows: int, output: int, patience: float | None) -> Reservation | None:
        deadline = None if patience is None else self.now + patience
        before = (self.admission.generations, self.admission.tokens)
        try:
            reservation = self.admission.reserve(
                tenant, SETTINGS[tenant], rows=rows, output=output, now=self.now, deadline=deadline
            )
        except (Overloaded, DeadlineExceeded) as refused:
            self.check_refusal(refused, deadline)
            assert (self.admission.generations, self.admission.tokens) == before
            return None
        assert deadline is None or deadline > self.now
        self.open.append((reservation, tenant, rows + output))
        if tenant == "slow":
            self.slow_admitted += rows
        return reservation

    def check_refusal(self, error: Overloaded | DeadlineExceeded, deadline: float | None) -> None:
        if isinstance(error, DeadlineExceeded):
            assert deadline is not None
            return
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= max(MAX_HINT_S, (self.slow_admitted + self.slow_charged + 60) / 5)

    @rule(reservation=held, rows=st.integers(-5, 20))
    def charge(self, reservation: Reservation | None, rows: int) -> None:
        if reservation is not None:
            self.admission.charge(reservation, rows, self.now)
            if reservation.tenant == "slow":
                self.slow_charged += max(rows, 0)
                self.given_back += max(-rows, 0)

    @rule(reservation=consumes(held), times=st.integers(1, 3))
    def release(self, reservation: Reservation | None, times: int) -> None:
        if reservation is not None:
            for _ in range(times):
                self.admission.release(reservation, self.now)
            self.open = [entry for entry in self.open if entry[0] is not reservation]

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_leaks_and_no_limit_is_exceeded(self) -> None:
        assert self.admission.generations == len(self.open) <= LIMITS.max_generations
        assert self.admission.tokens == sum(min(tokens, 200) for _, _, tokens in self.open) <= LIMITS.max_tokens
        for tenant in SETTINGS:
            assert self.admission.generations_of(tenant) == sum(name == tenant for _, name, _ in self.open)
        assert self.admission.generations_of("few") <= 2

    @invariant()
    def rows_are_admitted_at_the_rate_granted(self) -> None:
        # A bucket that was full, what has flowed in, what was given back, and the last prompt, larger than the bucket.
        assert self.slow_admitted <= 20 + 5 * self.now + self.given_back + 60


TestAdmissionMachine = AdmissionMachine.TestCase
