"""Verifiers that share a real Redis: limits, revoked keys, usage, the operator's page; and Redis in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilotfish_cloud.cli import main
from pilotfish_cloud.keyring import create_key
from pilotfish_cloud.shared_state.redis_state import RedisState
from pilotfish_core.errors import LocalError, Unauthenticated
from tests.cloud.shared_state.contract import until
from tests.cloud.shared_state.redis_server import RedisServer, redis_server
from tests.e2e.conftest import TARGET, Verifier, connected, serving
from tests.e2e.raw_calls import call, opening

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def replicas(redis: RedisServer, folder: Path, **options: Any) -> AsyncIterator[tuple[Verifier, Verifier]]:
    tenants = folder / "tenants.toml"
    tenants.write_text("[tenants.small]\nmax_generations = 1\n")
    keys = folder / "keys.json"
    if not keys.exists():
        create_key(keys, "unused")
    fields: dict[str, Any] = {
        "redis_url": redis.url,
        "keys_file": keys,
        "tenants_file": tenants,
        "max_unacknowledged": 16,
    }
    # A deadline that a busy machine meets; what it comes to when it is not met is another test's.
    fields |= {"redis_timeout_ms": 10_000.0} | options
    async with serving(**fields, replica_name="one") as one, serving(**fields, replica_name="two") as two:
        yield one, two


@contextlib.asynccontextmanager
async def held(verifier: Verifier, key: str, **changes: Any) -> AsyncIterator[None]:
    """A generation whose device acknowledges nothing: it is there until its call is cancelled."""
    began = asyncio.Event()
    frames = [opening(verifier, max_tokens=400, **changes)]
    calling = asyncio.create_task(call(verifier, frames, stay=asyncio.Event(), began=began, metadata=shown(key)))
    await began.wait()
    try:
        yield
    finally:
        calling.cancel()
        await asyncio.wait([calling])


def shown(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def outcome(verifier: Verifier, key: str, **changes: Any) -> tuple[str, str]:
    """Of a short generation: its status and the message."""
    frames = [opening(verifier, **{"name": 2, "max_tokens": 2} | changes)]
    said = await call(verifier, frames, stay=asyncio.Event(), metadata=shown(key))
    return said.code.name, said.details


async def answer(verifier: Verifier, key: str | None = None, **params: Any) -> Any:
    async with connected(verifier, api_key=key) as client:
        fields: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "ignore_eos": True} | params
        return await (await client.generate("def f(", **fields)).result()


async def readiness(verifier: Verifier) -> dict[str, Any]:
    async with httpx.AsyncClient() as http:
        return dict((await http.get(f"{verifier.http}/readyz")).json())


async def test_one_generation_on_two_replicas(redis: RedisServer, tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.json", "small")
    async with replicas(redis, tmp_path) as (one, two):
        async with held(one, key):
            code, details = await outcome(two, key)
            assert (code, "1 generations of this key's owner" in details) == ("RESOURCE_EXHAUSTED", True)
            for other in ({"prompt": (5, 6, 7, 9)}, {"max_tokens": 401}):  # under its id, and none of it
                changes = {"name": 1, "attempt": 2, "max_tokens": 400} | other
                assert (await outcome(two, key, **changes))[0] == "RESOURCE_EXHAUSTED"
            async with asyncio.timeout(60), held(two, key, attempt=2):  # the same one: its place goes with it
                assert (await outcome(two, key))[0] == "RESOURCE_EXHAUSTED"

        async def free() -> bool:
            return (await outcome(one, key))[0] == "OK"

        await until(free)


async def test_a_key_that_is_revoked_for_all(redis: RedisServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = create_key(keys, "acme")
    async with replicas(redis, tmp_path) as (one, two):
        await answer(one, key)
        revoke = ["keys", "revoke", key.split("_")[1], "--file", str(keys), "--redis-url", redis.url]
        assert await asyncio.to_thread(main, revoke) == 0

        async def refused() -> bool:
            for verifier in (one, two):
                with contextlib.suppress(Unauthenticated):
                    await answer(verifier, key)
                    return False
            return True

        await until(refused)
        redis.stop()
        redis.start()  # empty: the replicas know it still, and say so again

        async def told_again() -> bool:
            with redis.client() as client:
                return bool(client.smembers("pilotfish:revoked") == {key.split("_")[1]})

        await until(told_again)
        assert await refused()


async def test_usage_and_the_operators_page(
    redis: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = create_key(tmp_path / "keys.json", "acme")
    days = {datetime.datetime.now(datetime.UTC).date().isoformat()}
    async with replicas(redis, tmp_path) as (one, two), httpx.AsyncClient() as http:
        results = [await answer(verifier, key, max_tokens=5) for verifier in (one, two, two)]
        prompt = sum(result.metrics.prompt_tokens for result in results)

        async def seen() -> bool:
            figures = (await http.get(f"{one.http}/status.json")).json()
            return [line["name"] for line in figures["replicas"]] == ["one", "two"]

        await until(seen)
        metrics = (await http.get(f"{one.http}/metrics")).text
        assert "pilotfish_shared_state_in_touch 1.0" in metrics
        assert "pilotfish_replicas 2.0" in metrics
    days.add(datetime.datetime.now(datetime.UTC).date().isoformat())
    state = RedisState(redis.url, timeout_s=10.0)
    counted = [(await state.usage(day)).get("acme", {}) for day in sorted(days)]
    await state.close()
    total = {name: sum(day.get(name, 0) for day in counted) for name in ("generations", "prompt_tokens")}
    assert total == {"generations": 3, "prompt_tokens": prompt}
    assert sum(day.get("committed_tokens", 0) for day in counted) == 15
    assert sum(day.get("verified_rows", 0) for day in counted) >= 12
    capsys.readouterr()
    for form in ([], ["--json"]):
        for day in sorted(days):
            assert await asyncio.to_thread(main, ["usage", "--redis-url", redis.url, "--day", day, *form]) == 0
        assert "acme" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["usage", "--redis-url", redis.url, "--day", "today"]) == 1


async def test_redis_goes_and_comes_back(redis: RedisServer, tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.json", "small")
    async with replicas(redis, tmp_path, redis_timeout_ms=200.0) as (one, two):
        assert (await readiness(one))["shared_state"] == "in touch"
        redis.stop()
        await answer(one, key)

        async def alone() -> bool:
            return "out of reach" in (await readiness(one))["shared_state"]

        await until(alone)
        async with held(one, key):  # its share of one is one
            assert (await outcome(one, key))[0] == "RESOURCE_EXHAUSTED"
            assert await outcome(two, key) == ("OK", "")
        redis.start()

        async def together() -> bool:
            return bool((await readiness(one))["shared_state"] == "in touch")

        await until(together)
        redis.pause()
        await answer(one, key)  # it waits for 200 ms at most
        redis.resume()
        await until(together)


async def test_down_at_the_start(redis: RedisServer, tmp_path: Path) -> None:
    redis.stop()
    async with serving(redis_url=redis.url) as alone:
        await answer(alone)
        assert "out of reach" in (await readiness(alone))["shared_state"]
    with pytest.raises(LocalError, match="--redis-required"):
        async with serving(redis_url=redis.url, redis_required=True):
            pass


async def test_the_check_says_so_before(redis: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(TARGET)
    flags = ["check", model, "--port", "0", "--http-port", "0", "--redis-url", redis.url.replace("//", "//:sesame@")]
    await asyncio.to_thread(main, flags)
    redis.stop()
    assert await asyncio.to_thread(main, [*flags, "--redis-required"]) == 1
    said = capsys.readouterr().out
    assert "WRONG: redis://127.0.0.1" in said
    assert "sesame" not in said
