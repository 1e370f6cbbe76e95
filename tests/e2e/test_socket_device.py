"""The Python device over WebSocket: the same answers, errors and recovery as over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilotfish_cloud.keyring import create_key
from pilotfish_core.errors import (
    DeadlineExceeded,
    InvalidParameter,
    Overloaded,
    PilotfishError,
    ProtocolViolation,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from tests.e2e.certificates import issue
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.http_doors import gateway_of, with_template
from tests.e2e.raw_calls import idle

pytestmark = pytest.mark.asyncio(loop_scope="session")
PROMPT = "def f(x):\n    return f(x)\n\ndef g(x):\n"
NGRAM: dict[str, Any] = {"draft": "ngram", "arm": "device-async"}


def at(verifier: Verifier, scheme: str = "ws") -> str:
    return f"{scheme}://127.0.0.1:{verifier.server.http_port}"


async def answer(verifier: Verifier, server: Any = None, *, options: dict[str, Any] = NGRAM, **params: Any) -> Any:
    async with connected(verifier, server=server or at(verifier), **options) as client:
        stream = await client.generate(PROMPT, **{"max_tokens": 8, "temperature": 0, "ignore_eos": True} | params)
        return await stream.result()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_the_text_is_that_of_grpc(verifier: Verifier, temperature: float) -> None:
    params: dict[str, Any] = {"max_tokens": 80, "temperature": temperature, "seed": 7}
    over_grpc = await answer(verifier, verifier.address, **params)
    over_socket = await answer(verifier, **params)
    alone = await answer(verifier, options={}, **params)
    assert over_socket.token_ids == over_grpc.token_ids == alone.token_ids
    assert over_socket.text == over_grpc.text == alone.text
    assert over_socket.metrics.accepted_draft_tokens > 0
    assert over_socket.metrics.bytes_down > 0
    padded = await answer(verifier, options=NGRAM | {"pad": True}, **params)
    assert padded.token_ids == alone.token_ids


async def test_a_replica_that_leaves_in_mid_answer(verifier: Verifier) -> None:
    params: dict[str, Any] = {"max_tokens": 200, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    whole = await answer(verifier, verifier.address, **params)
    async with serving() as leaving, connected(leaving, server=[at(leaving), at(verifier)], **NGRAM) as client:
        stream = await client.generate(PROMPT, **params)
        await stream.__anext__()
        await leaving.server.stop(0.0)
        there = await stream.result()
    assert there.token_ids == whole.token_ids
    assert there.metrics.reconnects == 1


async def test_an_answer_that_is_cancelled_frees_its_place(verifier: Verifier) -> None:
    async with connected(verifier, server=at(verifier)) as client:
        stream = await client.generate(PROMPT, max_tokens=1500, temperature=0, ignore_eos=True)
        await stream.__anext__()
        assert gateway_of(verifier).running == 1
        stream.cancel()
        await stream.result()
    assert (await idle(verifier)).admission.generations == 0


async def test_what_a_verifier_says(tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.json", "one")
    async with serving(keys_file=tmp_path / "keys.json", max_generations=1) as guarded:
        assert len((await answer(guarded, options={"api_key": key})).token_ids) == 8
        with pytest.raises(Unauthenticated, match="not one of this verifier's"):
            await answer(guarded, options={"api_key": f"{key}x"})
        with pytest.raises(UnknownModel, match="does not serve model 'other'"):
            await answer(guarded, options={"api_key": key, "model": "other"})
        async with connected(guarded, server=at(guarded), api_key=key) as client:
            running = await client.generate(PROMPT, max_tokens=1500, temperature=0, ignore_eos=True)
            await running.__anext__()
            with pytest.raises((Overloaded, DeadlineExceeded)):
                await answer(guarded, options={"api_key": key}, timeout_s=0.5)
            running.cancel()
            await running.result()
        with pytest.raises(DeadlineExceeded):
            await answer(guarded, options={"api_key": key}, max_tokens=1500, timeout_s=0.3)


async def test_what_is_no_verifier(verifier: Verifier) -> None:
    for server in (f"ws://127.0.0.1:{verifier.server.port}", at(verifier, "wss")):
        with pytest.raises((Unavailable, ProtocolViolation)):
            await answer(verifier, server, timeout_s=2)


async def test_tls(tmp_path: Path) -> None:
    authority, other = issue(tmp_path, "authority"), issue(tmp_path, "other")
    server = issue(tmp_path, "server", authority)
    async with serving(tls_cert=server.cert, tls_key=server.key) as secure:
        found = await answer(secure, at(secure, "wss"), options={"ca": authority.cert})
        assert len(found.token_ids) == 8
        with pytest.raises(Unauthenticated, match="is not accepted"):
            await answer(secure, at(secure, "wss"), options={"ca": other.cert})
        with pytest.raises(PilotfishError):
            await answer(secure, timeout_s=2)
        with pytest.raises(InvalidParameter, match="say wss://"):
            await answer(secure, options={"ca": authority.cert})


async def test_chat(tmp_path: Path) -> None:
    async with serving(model=with_template(tmp_path)) as chatty:
        texts = []
        for server in (chatty.address, at(chatty)):
            async with connected(chatty, server=server) as client:
                stream = await client.chat([{"role": "user", "content": "sum"}], max_tokens=12, temperature=0)
                texts.append((await stream.result()).text)
    assert texts[0] == texts[1]
