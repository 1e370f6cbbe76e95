"""A generation over WebSocket, against the real engine: the same text as over gRPC, under the same rules."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from pilotfish_cloud import device_calls
from pilotfish_cloud.keyring import create_key
from pilotfish_core.drafts import DraftRun, FinishReason
from pilotfish_core.padding import SMALLEST_CLASS
from pilotfish_core.prompts import prefixes
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import DeviceFrameWriter
from tests.cloud.shared_state.contract import until
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.http_doors import gateway_of
from tests.e2e.raw_calls import PROMPT, call, idle, opening, serves
from tests.e2e.socket_calls import PROTOCOL, ask, key_protocol, socket

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def over_grpc(verifier: Verifier, prompt: tuple[int, ...], **params: Any) -> tuple[int, ...]:
    async with connected(verifier) as client:
        return (await (await client.generate(list(prompt), ignore_eos=True, **params)).result()).token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_the_text_is_that_of_grpc(verifier: Verifier, temperature: float) -> None:
    params: dict[str, Any] = {"max_tokens": 60, "temperature": temperature, "seed": 7}
    expected = await over_grpc(verifier, PROMPT, **params)
    alone = await ask(verifier, [opening(verifier, name=21, **params)])
    assert (alone.code, alone.reason, alone.told) == (1000, "", None)
    assert alone.headers["sec-websocket-protocol"] == PROTOCOL
    assert "sec-websocket-extensions" not in alone.headers  # sizes leak text, compressed ones more of it
    assert alone.frames[0].HasField("opened")
    assert alone.tokens == expected
    finish = alone.commits[-1].finish
    assert finish is not None
    assert finish.reason is FinishReason.LENGTH
    for number, drafted in enumerate((expected[:32], (9, 9, 9, 9))):
        run = DeviceFrameWriter().draft(DraftRun(0, len(PROMPT), drafted))
        said = await ask(verifier, [opening(verifier, name=22 + number, **params), run])
        assert (said.code, said.tokens) == (1000, expected)
        assert (sum(commit.accepted for commit in said.commits) > 0) is (number == 0)
    await serves(verifier)


async def test_a_resume_goes_on_where_the_device_is(verifier: Verifier) -> None:
    params: dict[str, Any] = {"max_tokens": 40, "temperature": 0.8, "seed": 3}
    whole = (await ask(verifier, [opening(verifier, name=31, **params)])).tokens
    rest = await ask(verifier, [opening(verifier, name=31, attempt=2, output=whole[:17], **params)])
    assert (rest.code, rest.tokens) == (1000, whole[17:])
    lost_end = await ask(verifier, [opening(verifier, name=31, attempt=3, output=whole, **params)])
    assert (lost_end.code, lost_end.tokens, len(lost_end.commits)) == (1000, (), 1)


async def test_a_prompt_by_hash(verifier: Verifier) -> None:
    prompt = tuple(range(100, 148))
    whole = opening(verifier, name=41, prompt=prompt, max_tokens=6)
    by_hash = pb.DeviceFrame.FromString(whole.SerializeToString())
    prefix = prefixes(prompt)[1]
    del by_hash.open.prompt.tokens[:]
    by_hash.open.prompt.tokens.extend(prompt[32:])
    by_hash.open.prompt.prefix_hash, by_hash.open.prompt.prefix_length = prefix
    gateway_of(verifier).prompts = type(gateway_of(verifier).prompts)()
    asked = await ask(verifier, [by_hash, whole])
    assert asked.frames[0].HasField("prefix_unknown")
    assert asked.frames[1].HasField("opened")
    known = await ask(verifier, [by_hash])
    assert known.frames[0].HasField("opened")
    assert asked.tokens == known.tokens == await over_grpc(verifier, prompt, max_tokens=6, temperature=0)


async def test_pings_and_acknowledgements(verifier: Verifier) -> None:
    frames = [pb.DeviceFrame(ping=pb.Ping(nonce=77)), pb.DeviceFrame(acknowledged=4)]
    said = await ask(verifier, [opening(verifier, name=51), *frames])
    assert said.code == 1000
    assert [frame.pong.nonce for frame in said.frames if frame.HasField("pong")] == [77]


async def test_a_device_that_pads_is_answered_padded(verifier: Verifier) -> None:
    first = opening(verifier, name=61)
    first.padding = b"\0" * 10
    said = await ask(verifier, [first])
    assert said.code == 1000
    assert {frame.ByteSize() for frame in said.frames} <= {SMALLEST_CLASS << power for power in range(12)}


async def test_who_has_no_key_stays_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = create_key(tmp_path / "keys.json", "one")
    caplog.set_level(logging.DEBUG)
    async with serving(keys_file=tmp_path / "keys.json") as guarded:
        first = [opening(guarded)]
        said = await ask(guarded, first, offers=(PROTOCOL, key_protocol(key)))
        assert (said.code, said.headers["sec-websocket-protocol"]) == (1000, PROTOCOL)
        said = await ask(guarded, first, additional_headers={"authorization": f"Bearer {key}"})
        assert said.code == 1000
        for offers, part in (
            ((PROTOCOL,), "asks for an API key"),
            ((PROTOCOL, key_protocol("pf_000000000000_wrong")), "not one of this"),
            ((PROTOCOL, key_protocol(f"{key}x")), "not one of this"),
        ):
            said = await ask(guarded, first, offers=offers)
            assert (said.code, said.error["code"]) == (4016, "unauthenticated")
            assert part in said.error["message"]
        await idle(guarded)
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("websockets.client")]
    assert logged
    for secret in (key.split("_", 2)[2], key_protocol(key)):
        assert not [line for line in logged if secret in line]


@pytest.mark.parametrize(
    ("offers", "part"),
    [
        ((), "pilotfish.v1"),
        (("pilotfish.v2",), "pilotfish.v1"),
        ((PROTOCOL, "pilotfish.key.!"), "base64url"),
        ((PROTOCOL, "pilotfish.key._w"), "base64url"),  # 0xff
        ((PROTOCOL, "pilotfish.key.a", "pilotfish.key.b"), "2 sub-protocols"),
        ((PROTOCOL, "pilotfish.deadline.soon"), "'soon'"),
        ((PROTOCOL, "pilotfish.deadline.-5"), "'-5'"),
    ],
)
async def test_sub_protocols_that_say_nothing(verifier: Verifier, offers: tuple[str, ...], part: str) -> None:
    from websockets.exceptions import NegotiationError

    try:
        said = await ask(verifier, [opening(verifier)], offers=offers)
    except NegotiationError:  # some clients end it themselves where none of theirs was selected
        assert PROTOCOL not in offers
        return
    assert (said.code, said.error["code"]) == (4003, "protocol_violation")
    assert part in (said.told or {"error": said.error})["error"]["message"]


async def test_a_deadline(verifier: Verifier) -> None:
    first = opening(verifier, name=71, max_tokens=1500)  # nobody acknowledges: it pauses and never ends
    said = await ask(verifier, [first], offers=(PROTOCOL, "pilotfish.deadline.700"))
    assert (said.code, said.error["code"]) == (4004, "deadline_exceeded")
    assert (await idle(verifier)).running == 0
    late = await ask(verifier, [opening(verifier, name=72)], offers=(PROTOCOL, "pilotfish.deadline.0"))
    assert late.code == 4004
    await serves(verifier)


async def test_a_socket_that_never_opens_is_ended(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_calls, "OPEN_TIMEOUT_S", 0.05)
    said = await ask(verifier, [])
    assert (said.code, "no open within" in said.error["message"]) == (4004, True)


async def test_a_device_that_goes_away_frees_its_place(verifier: Verifier) -> None:
    """By a close, and by a connection that is cut."""
    gateway = gateway_of(verifier)
    for cut in (False, True):
        async with socket(verifier.http) as peer:
            await peer.send(opening(verifier, name=81, max_tokens=1500).SerializeToString())
            await peer.recv()
            assert gateway.running == 1
            if cut:
                peer.transport.abort()
        await idle(verifier)
        assert gateway.admission.generations == 0
    await serves(verifier)


async def test_a_newer_attempt_ends_the_older_one_whatever_its_door(verifier: Verifier) -> None:
    began = asyncio.Event()
    older = asyncio.create_task(ask(verifier, [opening(verifier, name=91, max_tokens=1500)], began=began))
    await began.wait()
    newer = await call(verifier, [opening(verifier, name=91, attempt=2)], stay=asyncio.Event())
    assert newer.frames
    said = await older
    assert (said.code, said.error["code"]) == (4001, "cancelled")
    assert "superseded by attempt 2" in said.error["message"]


async def test_too_many_are_told_when_to_try_again_and_where() -> None:
    async with serving(max_generations=1) as small:
        began = asyncio.Event()
        holding = asyncio.create_task(ask(small, [opening(small, name=1, max_tokens=1500)], began=began))
        await began.wait()
        said = await ask(small, [opening(small, name=2)])
        assert (said.code, said.error["code"]) == (4008, "overloaded")
        assert said.error["retry_after_s"] > 0
        assert said.told is not None
        told = said.told["error"]
        assert told["code"] == "overloaded"
        assert len(told["routes"]) == 1
        assert told["request_id"] == said.headers["x-request-id"]
        assert told["message"].startswith(said.error["message"].removesuffix("..."))
        holding.cancel()
        await asyncio.wait([holding])
        await idle(small)


async def test_a_request_keeps_its_name(verifier: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    said = await ask(verifier, [b"\xff"], additional_headers={"x-request-id": "mine-9"})
    assert (said.code, said.headers["x-request-id"]) == (4003, "mine-9")
    assert "cannot be parsed" in caplog.text


async def test_a_drain_refuses_at_the_upgrade_and_hands_back_what_runs() -> None:
    async with serving() as leaving:
        began = asyncio.Event()
        running = asyncio.create_task(ask(leaving, [opening(leaving, max_tokens=1500)], began=began))
        await began.wait()
        stopping = asyncio.create_task(leaving.server.stop(600))

        async def drains() -> bool:
            return gateway_of(leaving).draining

        await until(drains)
        with pytest.raises(InvalidStatus) as refused:
            await ask(leaving, [opening(leaving, name=2)])
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["x-pilotfish-error"] == "unavailable"
        assert not running.done()
        gateway_of(leaving).hurry()
        said = await running
        await stopping
        assert (said.code, said.error["code"], said.error["retry_after_s"]) == (4014, "unavailable", 0)
        assert said.told is not None
        assert said.told["error"]["routes"]
        assert gateway_of(leaving).running == gateway_of(leaving).admission.generations == 0


async def test_a_drain_waits_for_who_ends_in_time() -> None:
    async with serving() as leaving:
        began = asyncio.Event()
        running = asyncio.create_task(ask(leaving, [opening(leaving, max_tokens=200)], began=began))
        await began.wait()
        await leaving.server.stop(600)
        said = await running
        assert (said.code, len(said.tokens)) == (1000, 200)
