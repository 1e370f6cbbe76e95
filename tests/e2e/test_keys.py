"""API keys in front of a real verifier: who gets in, who does not, and that keys are never seen anywhere."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pilotfish.addresses import parse_addresses
from pilotfish.client import AsyncClient
from pilotfish.credentials import Credentials
from pilotfish_cloud.keyring import create_key, revoke_key
from pilotfish_core.errors import InvalidParameter, PromptTooLong, Unauthenticated
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.raw_calls import call, opening

pytestmark = pytest.mark.asyncio(loop_scope="session")
LONG = "def f(x):\n    return x\n\n" * 12
SETTINGS = """
[default]
max_tokens = 64

[tenants.small]
max_generations = 1
max_prompt_tokens = 20
"""


class Guarded:
    """A verifier that asks for keys, and keys for it."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys.json"
        self.tenants = folder / "tenants.toml"
        self.tenants.write_text(SETTINGS, encoding="utf-8")
        self.one, self.two, self.small = (create_key(self.keys, name) for name in ("one", "two", "small"))
        self.verifier: Verifier


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"))
    async with serving(keys_file=made.keys, tenants_file=made.tenants) as verifier:
        made.verifier = verifier
        yield made


async def answer(guarded: Guarded, key: str | None, prompt: str = "def f(", **params: Any) -> Any:
    async with connected(guarded.verifier, api_key=key) as client:
        stream = await client.generate(prompt, **{"max_tokens": 4, "temperature": 0, "ignore_eos": True} | params)
        return await stream.result()


async def test_who_has_a_key_gets_in(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((await answer(guarded, guarded.one)).token_ids) == 4
    monkeypatch.setenv("PILOTFISH_API_KEY", guarded.two)
    assert len((await answer(guarded, None)).token_ids) == 4


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "asks for an API key"),
        ("pf_000000000000_wrong", "not one of this verifier's"),
        ("{one}x", "not one of this verifier's"),
    ],
)
async def test_who_has_none_stays_out(
    guarded: Guarded, key: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILOTFISH_API_KEY", raising=False)
    with pytest.raises(Unauthenticated, match=message):
        await answer(guarded, None if key is None else key.format(one=guarded.one))


async def test_every_method_but_health_asks_for_a_key(guarded: Guarded) -> None:
    address = guarded.verifier.address.removeprefix("grpc://")
    async with grpc.aio.insecure_channel(address) as channel:
        stub = cast("pb_grpc.VerifierAsyncStub", pb_grpc.VerifierStub(channel))
        calls: list[Any] = [stub.Describe(pb.DescribeRequest())]
        fetch = stub.FetchTokenizer(pb.FetchTokenizerRequest())
        generate: Any = stub.Generate(iter(()))
        calls += [fetch.read(), generate.read()]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_tenants_do_not_share_a_prefix_cache(guarded: Guarded) -> None:
    first = await answer(guarded, guarded.one, LONG)
    again = await answer(guarded, guarded.one, LONG)
    other = await answer(guarded, guarded.two, LONG)
    assert first.metrics.cached_tokens == other.metrics.cached_tokens == 0
    assert again.metrics.cached_tokens > 50
    assert first.token_ids == other.token_ids


async def test_limits_of_a_tenant(guarded: Guarded) -> None:
    verifier, small = guarded.verifier, (("authorization", f"Bearer {guarded.small}"),)
    with pytest.raises(InvalidParameter, match="max_tokens is 65; expected at most 64"):
        await answer(guarded, guarded.one, max_tokens=65)
    with pytest.raises(PromptTooLong, match="at most 20"):
        await answer(guarded, guarded.small, LONG)
    began, stay = asyncio.Event(), asyncio.Event()
    # Its device acknowledges nothing, so that the generation is there until its call is cancelled.
    first = asyncio.create_task(
        call(verifier, [opening(verifier, max_tokens=60)], stay=stay, began=began, metadata=small)
    )
    await began.wait()
    refused = await call(verifier, [opening(verifier, name=2)], stay=stay, metadata=small)
    assert (refused.code, "at most 1 may" in refused.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert int(refused.trailers["pilotfish-retry-after-ms"]) > 0
    assert refused.trailers["pilotfish-error"] == "overloaded"
    assert (await first).code is grpc.StatusCode.OK
    assert len((await answer(guarded, guarded.small)).token_ids) == 4


async def test_a_revoked_key_after_a_reload(guarded: Guarded) -> None:
    key = create_key(guarded.keys, "one")
    guarded.verifier.server.reload()
    await answer(guarded, key)
    revoke_key(guarded.keys, key.split("_")[1])
    await answer(guarded, key)
    guarded.verifier.server.reload()
    with pytest.raises(Unauthenticated, match="is revoked"):
        await answer(guarded, key)


async def test_keys_are_in_no_log_and_no_error(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = f"{guarded.one}wrong"
    said = []
    for key in (guarded.one, wrong):
        try:
            await answer(guarded, key, max_tokens=1)
            await answer(guarded, key, max_tokens=65)
        except (Unauthenticated, InvalidParameter) as error:
            said.append(f"{error!r} {error.private} {error.__cause__!r} {error.__context__!r}")
    assert len(said) == 2
    out, err = capfd.readouterr()
    everything = "\n".join([*said, caplog.text, out, err, repr(Credentials(api_key=guarded.one))])
    assert "unauthenticated" in everything
    assert guarded.one.split("_", 2)[2] not in everything


@pytest.mark.slow
async def test_a_flood_of_wrong_keys_leaves_nothing_behind(guarded: Guarded) -> None:
    address = guarded.verifier.address.removeprefix("grpc://")
    async with grpc.aio.insecure_channel(address) as channel:
        stub = cast("pb_grpc.VerifierAsyncStub", pb_grpc.VerifierStub(channel))

        async def flood(count: int) -> None:
            for number in range(count):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.Describe(
                        pb.DescribeRequest(), metadata=(("authorization", f"Bearer pf_{number:012x}_{number:064x}"),)
                    )

        await flood(50)
        tracemalloc.start()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await flood(10_000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 100_000
    await answer(guarded, guarded.one)


@pytest.mark.parametrize("server", ["grpc://verifier.example:1", "10.0.0.1:1"])
async def test_a_key_does_not_leave_the_machine_unencrypted(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParameter, match="unencrypted; use grpcs://") as caught:
        AsyncClient(server, api_key="pf_x_secret")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("PILOTFISH_API_KEY", "pf_x_secret")
    with pytest.raises(InvalidParameter, match="unencrypted"):
        AsyncClient(["127.0.0.1:1", server])
    for allowed in (server, server.replace("grpc://", "grpcs://")):
        async with AsyncClient(allowed, insecure=not allowed.startswith("grpcs")):
            pass


@pytest.mark.parametrize("key", ["", "with space", "with\nnewline", "é", "x" * 600])
async def test_what_is_no_key_is_not_repeated(key: str) -> None:
    with pytest.raises(InvalidParameter, match="api_key is not an API key") as caught:
        Credentials.load(api_key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
async def test_this_machine(host: str) -> None:
    Credentials(api_key="k").check_addresses(parse_addresses(f"{host}:5"), insecure=False)
