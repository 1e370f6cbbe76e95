"""What devices counted against what Redis says, tenant by tenant."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Sequence
from typing import Any

from benchmarks.chaos.devices import Answer
from pilotfish_cloud.shared_state.redis_state import RedisState


def today() -> str:
    """The UTC day."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


async def told(url: str, days: Sequence[str]) -> dict[str, dict[str, int]]:
    """Usage by tenant and counter, over days."""
    state = RedisState(url, timeout_s=10.0)
    total: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for day in sorted(set(days)):
        for tenant, counts in (await state.usage(day)).items():
            total[tenant].update(counts)
    await state.close()
    return {tenant: dict(counts) for tenant, counts in total.items()}


def balance(answers: Sequence[Answer], redis: dict[str, dict[str, int]], unacknowledged: int) -> dict[str, Any]:
    """Whether, for each tenant, devices <= Redis <= devices + bound: for each stream that broke, the tokens that were
    committed and did not arrive (at most ``unacknowledged``), and a prompt where none had come.
    """
    tenants = {}
    for name in sorted({answer.tenant for answer in answers}):
        own = [answer for answer in answers if answer.tenant == name]
        said = redis.get(name, {})
        breaks = sum(answer.reconnects for answer in own)
        before_first = [_before_first(answer) for answer in own]
        tokens = sum(len(answer.token_ids) for answer in own)
        prompts = sum(answer.prompt_tokens for answer in own)
        again = sum(count * answer.prompt_tokens for count, answer in zip(before_first, own, strict=True))
        bounds = {
            "committed_tokens": (tokens, tokens + unacknowledged * breaks),
            "prompt_tokens": (prompts, prompts + again),
            "generations": (len(own), len(own) + sum(before_first)),
        }
        tenants[name] = {
            "breaks": breaks,
            "holds": all(low <= said.get(counter, 0) <= high for counter, (low, high) in bounds.items()),
        } | {
            counter: {"devices": low, "redis": said.get(counter, 0), "bound": high}
            for counter, (low, high) in bounds.items()
        }
    return {"holds": all(one["holds"] for one in tenants.values()), "tenants": tenants}


def _before_first(answer: Answer) -> int:
    """Breaks before its first token."""
    return answer.moments[0].reconnects if answer.moments else 0
