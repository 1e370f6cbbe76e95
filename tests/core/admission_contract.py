"""What every implementation of ``Admission`` must do, whatever holds its figures."""

from __future__ import annotations

import pytest

from pilotfish_core.admission import Admission, ServerLimits, TenantSettings
from pilotfish_core.errors import DeadlineExceeded, Overloaded

FREE = TenantSettings()


class AdmissionContract:
    """Subclasses make the admission; ``limits`` hold for one process alone or for all together."""

    def admission(self, limits: ServerLimits) -> Admission:
        raise NotImplementedError

    def test_a_place_is_given_back_once(self) -> None:
        admission = self.admission(ServerLimits())
        first = admission.reserve("a", FREE, rows=10, output=5, now=0.0)
        admission.reserve("b", FREE, rows=1, output=1, now=0.0)
        assert (admission.generations, admission.tokens) == (2, 17)
        admission.release(first, 1.0)
        admission.release(first, 2.0)
        assert (admission.generations, admission.tokens) == (1, 2)

    def test_places_of_all(self) -> None:
        admission = self.admission(ServerLimits(max_generations=2))
        held = [admission.reserve(name, FREE, rows=1, output=1, now=0.0) for name in "ab"]
        with pytest.raises(Overloaded, match="2 generations run or wait") as caught:
            admission.reserve("c", FREE, rows=1, output=1, now=0.0)
        assert caught.value.retry_after_s is not None
        admission.release(held[0], 0.0)
        admission.reserve("c", FREE, rows=1, output=1, now=0.0)

    def test_tokens_of_all(self) -> None:
        admission = self.admission(ServerLimits(max_tokens=100))
        admission.reserve("a", FREE, rows=50, output=40, now=0.0)
        with pytest.raises(Overloaded, match="90 tokens run or wait"):
            admission.reserve("b", FREE, rows=5, output=6, now=0.0)
        admission.reserve("b", FREE, rows=5, output=5, now=0.0)

    def test_a_generation_larger_than_all_tokens_runs_alone(self) -> None:
        admission = self.admission(ServerLimits(max_tokens=100))
        large = admission.reserve("a", FREE, rows=50, output=400, now=0.0)
        assert admission.tokens == 100
        with pytest.raises(Overloaded):
            admission.reserve("b", FREE, rows=1, output=1, now=0.0)
        admission.release(large, 1.0)
        assert admission.tokens == 0

    def test_places_of_a_tenant(self) -> None:
        admission = self.admission(ServerLimits())
        one = TenantSettings(max_generations=1)
        held = admission.reserve("a", one, rows=1, output=1, now=0.0)
        with pytest.raises(Overloaded, match="at most 1 may"):
            admission.reserve("a", one, rows=1, output=1, now=0.0)
        admission.reserve("b", one, rows=1, output=1, now=0.0)
        admission.release(held, 0.0)
        admission.reserve("a", one, rows=1, output=1, now=0.0)

    def test_rows_of_a_tenant(self) -> None:
        admission = self.admission(ServerLimits())
        slow = TenantSettings(rows_per_s=10, burst_s=10)
        held = admission.reserve("a", slow, rows=60, output=1, now=0.0)
        with pytest.raises(Overloaded, match="10 a second") as caught:
            admission.reserve("a", slow, rows=60, output=1, now=0.0)
        assert caught.value.retry_after_s == pytest.approx(2.0)
        admission.reserve("a", slow, rows=60, output=1, now=2.0)
        admission.charge(held, 100, 2.0)  # what was computed is owed, and keeps the next one waiting
        with pytest.raises(Overloaded) as caught:
            admission.reserve("a", slow, rows=10, output=1, now=2.0)
        assert caught.value.retry_after_s == pytest.approx(11.0)
        admission.charge(held, -100, 2.0)
        with pytest.raises(Overloaded) as caught:
            admission.reserve("a", slow, rows=10, output=1, now=2.0)
        assert caught.value.retry_after_s == pytest.approx(1.0)

    def test_a_prompt_larger_than_the_burst_waits_for_a_full_bucket(self) -> None:
        admission = self.admission(ServerLimits())
        slow = TenantSettings(rows_per_s=10, burst_s=1)
        admission.reserve("a", slow, rows=500, output=1, now=0.0)
        with pytest.raises(Overloaded) as caught:
            admission.reserve("a", slow, rows=1, output=1, now=0.0)
        assert caught.value.retry_after_s == pytest.approx(49.1)

    def test_a_limit_that_is_changed_holds_at_once(self) -> None:
        admission = self.admission(ServerLimits())
        admission.reserve("a", TenantSettings(rows_per_s=10, burst_s=10), rows=100, output=1, now=0.0)
        with pytest.raises(Overloaded):
            admission.reserve("a", TenantSettings(rows_per_s=20, burst_s=10), rows=21, output=1, now=1.0)
        admission.reserve("a", TenantSettings(rows_per_s=20, burst_s=10), rows=20, output=1, now=1.5)
        admission.reserve("a", FREE, rows=1000, output=1, now=1.0)

    def test_who_could_not_begin_in_time_is_told_so(self) -> None:
        admission = self.admission(ServerLimits(slots=2))
        for _ in range(2):
            admission.release(admission.reserve("a", FREE, rows=1, output=1, now=0.0), 10.0)
        for _ in range(2):
            admission.reserve("a", FREE, rows=1, output=1, now=10.0, deadline=10.1)
        with pytest.raises(DeadlineExceeded, match=r"a wait of 5\.0 s"):
            admission.reserve("a", FREE, rows=1, output=1, now=10.0, deadline=14.0)
        admission.reserve("a", FREE, rows=1, output=1, now=10.0, deadline=16.0)
        with pytest.raises(DeadlineExceeded):
            self.admission(ServerLimits()).reserve("a", FREE, rows=1, output=1, now=10.0, deadline=10.0)

    def test_the_hint_follows_from_how_long_generations_take(self) -> None:
        admission = self.admission(ServerLimits(max_generations=4))
        for begin in range(4):
            admission.release(admission.reserve("a", FREE, rows=1, output=1, now=float(begin)), begin + 8.0)
        for _ in range(4):
            admission.reserve("a", FREE, rows=1, output=1, now=20.0)
        with pytest.raises(Overloaded) as caught:
            admission.reserve("a", FREE, rows=1, output=1, now=20.0)
        assert caught.value.retry_after_s == pytest.approx(2.0)

    def test_what_is_refused_changes_nothing(self) -> None:
        admission = self.admission(ServerLimits(max_generations=1))
        admission.reserve("a", TenantSettings(max_generations=1), rows=1, output=1, now=0.0)
        for tenant in ("a", "b"):
            with pytest.raises(Overloaded):
                admission.reserve(tenant, TenantSettings(max_generations=1), rows=1, output=1, now=0.0)
        assert (admission.generations, admission.tokens) == (1, 2)
