"""A small storm: one of two replicas is killed, a link is cut and Redis is away while six devices are in mid-answer.

``python -m benchmarks.chaos`` is the large one, with its figures in docs/replicas.md.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from benchmarks.chaos.deployment import UNACKNOWLEDGED, Deployment
from benchmarks.chaos.devices import Crowd, unharmed
from benchmarks.chaos.usage import balance, today, told
from pilotfish_cloud.shared_state.journal import UsageJournal
from tests.cloud.shared_state.contract import until
from tests.e2e.conftest import TARGET

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
IN_PROGRESS = 'pilotfish_generations_in_progress{door="grpc"}'


async def test_nobodys_text_changes_and_nothing_is_uncounted(tmp_path: Path) -> None:
    deployment = Deployment(TARGET, tmp_path, count=2, rtts_ms=(20, 60), names=("north", "south"))
    crowd = Crowd(6, 96)
    days = [today()]
    victim, other = deployment.replicas
    async with deployment.running(), contextlib.AsyncExitStack() as stack:
        await crowd.measure(deployment, stack)
        crowd.begin()

        async def in_mid_answer() -> bool:
            return (await victim.figures()).get(IN_PROGRESS, 0.0) >= 1

        await until(in_mid_answer)
        deployment.redis.stop()
        deployment.links[0].say("cut")
        await victim.kill()
        deployment.redis.start()
        answers = await crowd.end()
        await other.drain()
        days.append(today())
        usage = await told(deployment.redis.url, days)
    found = crowd.found(answers)
    assert unharmed(found), found
    assert found["breaks"] >= 3  # three devices are on the link that was cut

    journal = UsageJournal(tmp_path / "usage-1.journal", "the next one")  # which would tell this
    journal.close()
    for _, _, left in journal.left:
        for key, count in left.items():
            counts = usage.setdefault(key.tenant, {})
            counts[key.counter] = counts.get(key.counter, 0) + count
    balanced = balance([*crowd.truth.values(), *answers], usage, UNACKNOWLEDGED)
    assert balanced["holds"], balanced
