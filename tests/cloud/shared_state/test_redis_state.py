"""Against a real redis-server: the contract, other ways to reach one, and what others may have written there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish_cloud.shared_state.answers import level_of, levels_of, lines_of, object_of, whole_of
from pilotfish_cloud.shared_state.interface import Held, SharedState, StateTroubleError, TenantReport, UsageKey
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_cloud.shared_state.opening import where_of
from pilotfish_cloud.shared_state.redis_state import RedisState
from pilotfish_core.errors import InvalidParameter
from tests.cloud.shared_state.contract import DAY, SLOW, TWO, StateContract, report
from tests.cloud.shared_state.redis_server import RedisServer, redis_server
from tests.cloud.shared_state.test_admission import LINE
from tests.e2e.certificates import issue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest_asyncio.fixture
async def state(server: RedisServer) -> AsyncIterator[SharedState]:
    with server.client() as client:
        client.flushall()
    shared = RedisState(server.url, timeout_s=10.0, take_timeout_s=10.0)
    yield shared
    await shared.close()


class TestRedisState(StateContract):
    pass


HOSTILE: list[Any] = ["nan", "inf", "-inf", "1e300", "-1e300", "", "x" * 1000, "\x00\xff", "0x10"]


@pytest.mark.parametrize("value", HOSTILE)
async def test_a_level_that_cannot_be_meant_is_begun_anew(server: RedisServer, state: SharedState, value: str) -> None:
    for field in ("level", "at"):
        with server.client() as client:
            client.hset("pilotfish:bucket:a", mapping={"level": "50", "at": "1"} | {field: value})
        taken = await state.take("a", SLOW, Held(f"g{field}", "r1/1", 10), level=30.0)
        # "0x10" is a number to Lua: 16 rows, or long ago.
        assert taken.refused == ""
        assert taken.level is not None
        assert -10 <= taken.level <= 100
        with server.client() as client:
            client.flushall()


@pytest.mark.parametrize("name", ["places:a", "owners:a", "bucket:a", "revoked", "beats", "replicas", "heard:r1"])
async def test_keys_of_another_type(server: RedisServer, state: SharedState, name: str) -> None:
    for kind in ("list", "string", "hash", "set"):
        with server.client() as client:
            client.flushall()
            key = f"pilotfish:{name}"
            if kind == "list":
                client.rpush(key, "x")
            elif kind == "string":
                client.set(key, "x")
            elif kind == "hash":
                client.hset(key, "x", "y")
            else:
                client.sadd(key, "x")
        assert (await state.take("a", SLOW, Held("g1", "r1/1", 10))).refused == ""
        told = TenantReport(limits=SLOW, held=(Held("g1", "r1/1", 10),))
        view = await state.report(report(1, tenants={"a": told}, revoked=frozenset({"0123456789ab"})))
        assert "0123456789ab" in view.revoked
        assert view.beats["r1"] == "{}"
        assert view.levels["a"] == pytest.approx(90, abs=1)


async def test_a_lease_of_a_thousand_years_is_none(server: RedisServer, state: SharedState) -> None:
    with server.client() as client:
        client.zadd("pilotfish:places:a", {"g8": 1e17, "g9": 9e9})
    assert (await state.take("a", TWO, Held("g1", "r1/1"))).places == 1


async def test_counts_that_are_none_are_kept_aside(server: RedisServer, state: SharedState) -> None:
    usage = {UsageKey(DAY, "a", "prompt_tokens"): 7}
    with server.client() as client:
        client.hset(f"pilotfish:usage:{DAY}", "a:prompt_tokens", "9223372036854775807")
    view = await state.report(report(1, usage=usage))
    assert view.repaired >= 1
    assert await state.usage(DAY) == {"a": {"prompt_tokens": 7}}
    with server.client() as client:
        assert client.hget(f"pilotfish:usage:{DAY}", "a:prompt_tokens:damaged") == "9223372036854775807"
        client.delete(f"pilotfish:usage:{DAY}")
        client.set(f"pilotfish:usage:{DAY}", "x")
    await state.report(report(2, usage=usage))
    assert await state.usage(DAY) == {"a": {"prompt_tokens": 7}}
    with server.client() as client:
        assert client.get(f"pilotfish:usage:{DAY}:damaged") == "x"
        client.hset(f"pilotfish:usage:{DAY}", mapping={"a:prompt_tokens": "many", "b:x": "1", "none": "2"})
    assert await state.usage(DAY) == {}


async def test_it_may_ask_for_a_password_and_tls(tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    certificate = issue(tmp_path, "redis", authority)
    tls = ["--port", "0", "--tls-cert-file", str(certificate.cert), "--tls-key-file", str(certificate.key)]
    tls += ["--tls-ca-cert-file", str(authority.cert), "--tls-auth-clients", "no", "--requirepass", "open sesame"]
    probe = {"password": "open sesame", "ssl_ca_certs": str(authority.cert)}
    running = RedisServer(tmp_path, *tls, probe=probe)
    running.url = f"rediss://127.0.0.1:{running.port}/1"
    running.options += ("--tls-port", str(running.port))
    running.start()
    try:
        shared = RedisState(running.url, password="open sesame", ca=authority.cert, timeout_s=10.0)
        await shared.revoke("0123456789ab")
        await shared.close()
        right: dict[str, Any] = {"password": "open sesame", "ca": authority.cert}
        for wrong in ({"password": "wrong"}, {"ca": None}, {"password": None}):
            other = RedisState(running.url, timeout_s=10.0, **right | wrong)
            with pytest.raises(StateTroubleError) as caught:
                await other.ping()
            assert "sesame" not in f"{caught.value} {caught.value.private}"
            await other.close()
    finally:
        running.stop()


async def test_it_may_listen_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(tmp_path, "--port", "0", "--unixsocket", str(path), url=f"unix://{path}") as running:
        shared = RedisState(running.url, timeout_s=10.0)
        await shared.ping()
        await shared.close()


async def test_many_takes_at_once_are_no_trouble(server: RedisServer, state: SharedState) -> None:
    """More than there are connections: each has its turn, and reports go on meanwhile."""
    link = StateLink(state, "r1", lambda: LINE, tick_s=0.001)
    await link.start()
    for turn in range(4):
        names = [f"g{turn}-{number}" for number in range(64)]
        takes = (link.take("a", SLOW, Held(name, "r1/1", 0), level=None, released=()) for name in names)
        assert [taken is not None and taken.refused for taken in await asyncio.gather(*takes)] == [""] * 64
    assert link.in_touch
    assert not link.failures
    with server.client() as client:
        assert client.zcard("pilotfish:places:a") == 256
    await link.close()


async def test_nobody_there(tmp_path: Path) -> None:
    shared = RedisState(f"redis://127.0.0.1:{RedisServer(tmp_path).port}")
    with pytest.raises(StateTroubleError, match="cannot be used"):
        await shared.take("a", TWO, Held("g", "r/1"))
    await shared.close()


async def test_a_server_that_hangs_costs_no_more_than_the_timeout(tmp_path: Path) -> None:
    with redis_server(tmp_path) as running:
        shared = RedisState(running.url, take_timeout_s=0.05)
        await shared.ping()
        running.pause()
        with pytest.raises(StateTroubleError, match=r"within 0\.05 s"):
            await shared.take("a", TWO, Held("g", "r/1"))
        running.resume()
        await shared.ping()
        await shared.close()


@pytest.mark.parametrize(
    "url", ["", "http://x", "redis://", "127.0.0.1:6379", "redis://h:port", "redis://[::1", "unix://"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidParameter, match="redis-url"):
        where_of(url)


def test_a_password_is_not_shown() -> None:
    shown = where_of("rediss://user:secret@host:7000/3?password=secret")
    assert shown == "rediss://host:7000/3"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_answers_are_right_or_refused(value: object) -> None:
    for read in (object_of, whole_of, level_of, levels_of, lines_of):
        for answer in (value, json.dumps(value), {"a": value}):
            with contextlib.suppress(StateTroubleError):
                read(answer)
