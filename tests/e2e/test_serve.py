"""``pilotfish serve``: OpenAI's public client, unchanged, at the device's own endpoint in front of a real verifier."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from pilotfish_core.errors import NumericalFailure, Overloaded, Unavailable
from pilotfish_core.noise import derive_seed
from tests.e2e.conftest import Verifier, connected, serving
from tests.e2e.endpoints import endpoint
from tests.e2e.http_doors import caller, gateway_of, watching, with_template

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
PROMPT = "def quicksort(items):\n"
MESSAGES: list[Any] = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "Sort a list."}]
ASK: dict[str, Any] = {"model": "target", "prompt": PROMPT, "max_tokens": 32}
CHAT: dict[str, Any] = {"model": "target", "messages": MESSAGES, "max_tokens": 32}
WAYS: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.9, "seed": 11, "top_p": 0.9}]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chatty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Verifier]:
    """A verifier whose model has a chat template."""
    async with serving(model=with_template(tmp_path_factory.mktemp("chatty"))) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def here(chatty: Verifier, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of an endpoint in front of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        async with endpoint(chatty.address) as address:
            yield address


async def text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def chat_text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@pytest.mark.parametrize("params", WAYS)
async def test_completions_are_the_verifiers_own(chatty: Verifier, here: str, params: dict[str, Any]) -> None:
    async with caller(here) as client, caller(chatty.http) as direct:
        alone = await direct.completions.create(**ASK | params)
        answer = await client.completions.create(**ASK | params)
        stream = await client.completions.create(**ASK | params, stream=True)
        assert answer.choices[0].text == alone.choices[0].text == await text_of(stream)
    assert answer.choices[0].finish_reason == alone.choices[0].finish_reason
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.completion_tokens == alone.usage.completion_tokens
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.system_fingerprint == alone.system_fingerprint
    assert answer.metrics["drafter"] == "ngram"


@pytest.mark.parametrize("params", WAYS)
async def test_chats_are_the_verifiers_own(chatty: Verifier, here: str, params: dict[str, Any]) -> None:
    async with caller(here) as client, caller(chatty.http) as direct:
        alone = await direct.chat.completions.create(**CHAT | params)
        answer = await client.chat.completions.create(**CHAT | params)
        chunks = [chunk async for chunk in await client.chat.completions.create(**CHAT | params, stream=True)]
    assert answer.choices[0].message.content == alone.choices[0].message.content
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]


async def test_drafts_are_verified_and_save_steps(chatty: Verifier) -> None:
    """The answer repeats itself, which prompt lookup on the device sees. In lockstep, so that drafts are in time on a
    busy machine too.
    """
    text = "for item in items:\n    print(item)\n" * 8
    async with endpoint(chatty.address, arm="device-lockstep") as own, caller(own) as client:
        answer: Any = await client.completions.create(model="target", prompt=text, max_tokens=64, temperature=0)
    metrics = answer.metrics
    assert metrics["accepted_tokens"] > 0
    assert metrics["drafted_tokens"] >= metrics["accepted_tokens"]
    assert metrics["steps"] < 64


async def test_usage_comes_last_in_a_stream(here: str) -> None:
    async with caller(here) as client:
        stream = await client.completions.create(
            **ASK, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        *pieces, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 32
    assert all(chunk.usage is None and chunk.id == last.id for chunk in pieces)
    assert last.metrics["seed"] >= 0


async def test_stop_strings_are_not_shown(here: str) -> None:
    async with caller(here) as client:
        whole = (await client.completions.create(**ASK, temperature=0)).choices[0].text
        stop = whole[10:13]
        answer = await client.completions.create(**ASK, temperature=0, stop=stop)
        streamed = await text_of(await client.completions.create(**ASK, temperature=0, stop=stop, stream=True))
    assert answer.choices[0].text == streamed == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == stop


async def test_n_answers_have_the_verifiers_sub_seeds(chatty: Verifier, here: str) -> None:
    async with caller(here) as client, caller(chatty.http) as direct:
        three = await client.completions.create(**ASK, n=3, seed=5)
        theirs = await direct.completions.create(**ASK, n=3, seed=5)
        second = await client.completions.create(**ASK, seed=derive_seed(5, 1))
    assert [choice.text for choice in three.choices] == [choice.text for choice in theirs.choices]
    assert three.choices[1].text == second.choices[0].text
    assert len({choice.text for choice in three.choices}) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(chatty: Verifier, here: str, stream: bool) -> None:
    async with caller(here) as client, caller(chatty.http) as direct:
        fields = CHAT | {"temperature": 0, "logprobs": True, "top_logprobs": 2}
        theirs = (await direct.chat.completions.create(**fields)).choices[0].logprobs
        if stream:
            chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
            scores = [entry for chunk in chunks if (part := chunk.choices[0].logprobs) for entry in part.content or ()]
        else:
            mine = (await client.chat.completions.create(**fields)).choices[0].logprobs
            assert mine is not None
            scores = mine.content or []
    assert theirs is not None
    assert [entry.token for entry in scores] == [entry.token for entry in theirs.content or ()]
    for one, other in zip(scores, theirs.content or (), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-6)
        assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]


async def test_models(chatty: Verifier, here: str) -> None:
    async with caller(here) as client:
        assert [model.id async for model in client.models.list()] == ["target"]
        model = await client.models.retrieve("target")
        assert model.max_model_len == chatty.engine.info.max_model_len  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError, match="does not serve model 'gpt-4'"):
            await client.completions.create(**ASK | {"model": "gpt-4"})


async def test_a_key_of_its_own(chatty: Verifier) -> None:
    async with endpoint(chatty.address, key="pf-mine") as address:
        async with caller(address, api_key="pf-mine") as client:
            assert (await client.completions.create(**ASK)).usage is not None
        for wrong in ("pf-other", "pf-minE", "ключ".encode().decode("latin-1")):
            async with httpx.AsyncClient(base_url=address) as raw:
                header = {b"authorization": f"Bearer {wrong}".encode("latin-1")}
                answer = await raw.post("/v1/completions", json=ASK, headers=header)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "pf-mine" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost.evil.example"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"host": ""}, 403),
    ],
)
async def test_web_pages_of_elsewhere_are_turned_away(here: str, headers: dict[str, str], status: int) -> None:
    async with httpx.AsyncClient(base_url=here, timeout=60) as raw:
        answer = await raw.post("/v1/completions", json=ASK | {"max_tokens": 1}, headers=headers)
    assert answer.status_code == status
    if status == 200 and "origin" in headers:
        assert answer.headers["access-control-allow-origin"] == headers["origin"]
    if status == 403:
        assert answer.json()["error"]["code"] == "permission_denied"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_who_goes_away_cancels_the_generation(chatty: Verifier, here: str, stream: bool) -> None:
    fields = {"prompt": "def f(", "max_tokens": 1900, "temperature": 0, "ignore_eos": True, "stream": stream, "n": 2}
    with watching(chatty) as watcher:
        async with httpx.AsyncClient(base_url=here, timeout=60) as raw:
            sending = asyncio.create_task(
                raw.send(raw.build_request("POST", "/v1/completions", json=fields), stream=True)
            )
            await watcher.until(lambda: watcher.tokens > 4)
            if stream:
                await (await sending).aclose()
            else:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            await watcher.until(lambda: watcher.ended == 2)
        assert watcher.tokens < 2 * 1900
    assert gateway_of(chatty).running == 0


async def test_errors_of_the_verifier_have_their_status(chatty: Verifier, here: str) -> None:
    def refuse(stream: Any) -> None:
        stream.fail(Overloaded("the queue is full", retry_after_s=0.0))

    with watching(chatty, refuse):
        async with caller(here) as client:
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError, match="the queue is full"):
                    await client.completions.create(**ASK, stream=stream)


async def test_an_error_in_mid_stream_is_an_event(chatty: Verifier, here: str) -> None:
    with watching(chatty) as watcher:
        async with caller(here) as client:
            stream = await client.completions.create(**ASK | {"max_tokens": 1000, "stream": True, "temperature": 0})
            assert (await anext(stream)).choices
            watcher.streams[0].fail(NumericalFailure("the logits are not numbers"))
            with pytest.raises(openai.APIError, match="are not numbers") as caught:
                [chunk async for chunk in stream]
        assert caught.value.code == "numerical_failure"


BODIES: list[tuple[str, bytes, int]] = [
    ("/v1/completions", b"", 400),
    ("/v1/completions", b"{", 400),
    ("/v1/completions", b"\xff\xfe", 400),
    ("/v1/completions", b"[" * 100_000, 400),
    ("/v1/completions", b"[]", 400),
    ("/v1/completions", b"{}", 400),
    ("/v1/completions", b'{"prompt": "\\ud800"}', 400),
    ("/v1/completions", b'{"prompt": {"a": 1}}', 400),
    ("/v1/completions", b'{"prompt": [1, -1]}', 400),
    ("/v1/completions", b'{"prompt": [1e400]}', 400),
    ("/v1/completions", b'{"prompt": "x", "n": 1000000}', 400),
    ("/v1/completions", b'{"prompt": "x", "temperature": NaN}', 400),
    ("/v1/completions", b'{"prompt": "x", "max_tokens": 99999999999999999999}', 400),
    ("/v1/completions", b'{"prompt": "x", "seed": "many"}', 400),
    ("/v1/completions", json.dumps({"prompt": "x" * 100_000}).encode(), 400),
    ("/v1/completions", b'{"prompt": "' + b"x" * (5 * 2**20) + b'"}', 413),
    ("/v1/chat/completions", b'{"messages": []}', 400),
    ("/v1/chat/completions", b'{"messages": "hi"}', 400),
    ("/v1/chat/completions", b'{"messages": [5]}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "tool", "content": "x"}]}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "king", "content": "x"}]}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "f"}]}', 400),
    ("/v1/embeddings", b"{}", 404),
]


@pytest.mark.parametrize(("path", "body", "status"), BODIES, ids=[f"{i}" for i in range(len(BODIES))])
async def test_hostile_bodies_get_typed_errors(here: str, path: str, body: bytes, status: int) -> None:
    async with httpx.AsyncClient(base_url=here, timeout=60) as raw:
        answer = await raw.post(path, content=body)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert len(answer.content) < 1500
        assert (await raw.get("/livez")).status_code == 200


async def test_fields_that_mean_nothing_are_named(here: str) -> None:
    async with caller(here) as client:
        answer = await client.completions.with_raw_response.create(**ASK, user="me", extra_body={"shiny": 1})
    assert "shiny" in answer.headers["x-pilotfish-ignored"]


async def test_a_model_without_a_template_says_so(verifier: Verifier) -> None:
    async with endpoint(verifier.address) as address, caller(address) as client:
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            await client.chat.completions.create(**CHAT)


async def test_the_sdk_chats_counts_and_prewarms(chatty: Verifier) -> None:
    async with connected(chatty, draft="ngram") as client, caller(chatty.http) as direct:
        theirs = await direct.chat.completions.create(**CHAT, temperature=0)
        await client.prewarm(MESSAGES)
        stream = await client.chat(MESSAGES, max_tokens=32, temperature=0)
        result = await stream.result()
        assert theirs.usage is not None
        assert result.text == theirs.choices[0].message.content
        assert result.metrics.prompt_tokens == theirs.usage.prompt_tokens == await client.count_tokens(MESSAGES)
        assert await client.count_tokens(PROMPT) == len(client.tokenizer.encode(PROMPT))
        assert (await client.describe()).name == "target"


async def test_an_endpoint_that_ends_tells_its_callers(chatty: Verifier) -> None:
    async with contextlib.AsyncExitStack() as callers:
        with watching(chatty) as watcher:
            async with endpoint(chatty.address) as address:
                client = await callers.enter_async_context(caller(address))
                stream = await client.completions.create(
                    **ASK | {"max_tokens": 1900, "stream": True}, extra_body={"ignore_eos": True}
                )
                leaving = asyncio.create_task(text_of(stream))
                await watcher.until(lambda: watcher.tokens > 8)
            with pytest.raises(openai.APIError, match="shutting down"):
                await leaving
            await watcher.until(lambda: watcher.ended == 1)


async def test_an_endpoint_without_a_verifier_does_not_open() -> None:
    with pytest.raises(Unavailable):
        async with endpoint("127.0.0.1:1"):
            pass
