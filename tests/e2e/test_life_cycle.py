"""From start to end: names of requests, standard services, draining, signals."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pilotfish_cloud.keyring import create_key
from pilotfish_core.errors import Unavailable
from tests.e2e.conftest import TARGET, Verifier, connected, serving
from tests.e2e.raw_calls import call, opening
from tests.e2e.test_commands import PATIENCE_S, pilotfish, read_some, started

pytestmark = pytest.mark.asyncio(loop_scope="session")
SERVICE = "pilotfish_core.proto.v1.Verifier"


def target(verifier: Verifier) -> str:
    return verifier.address.removeprefix("grpc://")


async def test_a_request_keeps_its_name(verifier: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    named = (("x-request-id", "mine-7"),)
    said = await call(verifier, [opening(verifier)], stay=asyncio.Event(), metadata=named)
    assert (said.code, said.trailers["x-request-id"]) == (grpc.StatusCode.OK, "mine-7")
    said = await call(verifier, [], metadata=named)
    assert (said.code, said.trailers["x-request-id"]) == (grpc.StatusCode.INVALID_ARGUMENT, "mine-7")
    for bad in ("x" * 65, "a b"):
        said = await call(verifier, [], metadata=(("x-request-id", bad),))
        assert said.trailers["x-request-id"] != bad
        assert len(said.trailers["x-request-id"]) == 16
    assert "the stream ended before open" in caplog.text


async def test_the_standard_health_service(verifier: Verifier) -> None:
    async with grpc.aio.insecure_channel(target(verifier)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_standard_reflection_service(verifier: Verifier) -> None:
    def ask() -> tuple[list[str], Any]:
        with grpc.insecure_channel(target(verifier)) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = descriptor_pool.DescriptorPool(database)
            return list(database.get_services()), pool.FindServiceByName(SERVICE)

    names, service = await asyncio.to_thread(ask)
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(names)
    assert [method.name for method in service.methods] == [
        "Generate",
        "Describe",
        "FetchTokenizer",
        "FetchChatTemplate",
    ]


async def test_reflection_can_be_left_out() -> None:
    async with serving(reflection=False) as verifier, grpc.aio.insecure_channel(target(verifier)) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask: Any = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_drain_refuses_what_is_new_and_hands_back_what_does_not_end() -> None:
    async with serving() as verifier:
        server, began = verifier.server, asyncio.Event()
        assert server.gateway is not None
        frames = [opening(verifier, max_tokens=1500)]  # nobody acknowledges: it pauses and never ends
        running = asyncio.create_task(call(verifier, frames, stay=asyncio.Event(), began=began))
        await began.wait()
        async with grpc.aio.insecure_channel(target(verifier)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = cast("Any", stub.Watch(health_pb2.HealthCheckRequest()))
            states = _until_not_serving(watch)
            assert (await anext(states)).status == health_pb2.HealthCheckResponse.SERVING
            stopping = asyncio.create_task(server.stop(600))
            assert [state.status async for state in states] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        with pytest.raises(ConnectionRefusedError):  # which a load balancer understands: it asks another one
            await asyncio.open_connection("127.0.0.1", server.port)
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{verifier.http}/readyz")).status_code == 503
        assert not stopping.done()
        assert not running.done()
        server.interrupt()
        assert not stopping.done()
        server.interrupt()  # the second signal does not wait for the 600 s
        said = await running
        assert (said.code, "resume elsewhere" in said.details) == (grpc.StatusCode.UNAVAILABLE, True)
        await stopping
        assert server.gateway.running == server.gateway.admission.generations == 0


async def _until_not_serving(watch: Any) -> Any:
    async for state in watch:
        yield state
        if state.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            return


async def test_what_is_handed_back_goes_on_elsewhere(verifier: Verifier) -> None:
    async with serving() as leaving, connected(leaving, server=[leaving.address, verifier.address]) as client:
        params: dict[str, Any] = {"max_tokens": 200, "temperature": 0.8, "seed": 3, "ignore_eos": True}
        stream = await client.generate("def f(", **params)
        await stream.__anext__()
        await leaving.server.stop(0.0)
        there = await stream.result()
        async with connected(verifier) as other:
            whole = await (await other.generate("def f(", **params)).result()
    assert there.token_ids == whole.token_ids
    assert there.metrics.reconnects == 1


async def test_a_verifier_that_left_is_named() -> None:
    async with serving() as verifier, connected(verifier) as client:
        await verifier.server.stop(0.0)
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            await (await client.generate("x", max_tokens=1)).result()


# -- processes -----------------------------------------------------------------------------------------------------


def arguments(tmp_path: Path) -> tuple[object, ...]:
    config = tmp_path / "pilotfish.toml"
    config.write_text(
        f'model = "{TARGET}"\nport = 0\nhttp_port = 0\nkeys_file = "keys.json"\nshutdown_timeout = 300\n'
        'log_format = "json"\nlog_level = "info"\n',
        encoding="utf-8",
    )
    return "serve", "--config", config, "--json"


@pytest.mark.slow
async def test_signals_of_a_process(tmp_path: Path) -> None:
    """SIGHUP reads the keys again; SIGTERM drains, the second one does not wait; keys are in no line of the log."""
    await asyncio.to_thread(_signals_of_a_process, tmp_path)


def _signals_of_a_process(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    first = create_key(keys, "acme")
    with started("pilotfish_cloud", *arguments(tmp_path)) as process:
        ready = json.loads(read_some(process.stdout, b"\n"))
        second = create_key(keys, "acme")
        ask = ("generate", "--server", ready["address"], "--prompt", "x", "--draft", "none", "--json")
        short = (*ask, "--max-tokens", "2")
        assert pilotfish(*short, "--api-key", first).returncode == 0
        refused = pilotfish(*short, "--api-key", second)
        assert (refused.returncode, "not one of this verifier's" in refused.stderr) == (1, True)
        process.send_signal(signal.SIGHUP)
        log = read_some(process.stderr, b"\n")
        while "read again" not in log:
            log += read_some(process.stderr, b"\n")
        assert pilotfish(*short, "--api-key", second).returncode == 0
        long = (*ask, "--max-tokens", "2000", "--ignore-eos", "--verbose", "--api-key", second)
        with started("pilotfish", *long, "--save", tmp_path / "g.json") as device:
            read_some(device.stderr)  # the policy's first word: it has been opened
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            out, rest = process.communicate(timeout=PATIENCE_S)
            device.send_signal(signal.SIGINT)
            device.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "")
    lines = [json.loads(line) for line in (log + rest).splitlines()]
    assert any(line.get("request_id") for line in lines)
    for key in (first, second):
        assert key.split("_", 2)[2] not in log + rest
