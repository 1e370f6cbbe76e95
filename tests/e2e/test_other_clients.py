"""A client that shares no code with OpenAI's, unchanged at ``pilotfish serve``: Hugging Face's ``InferenceClient``,
with HTTP, events and response types of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import huggingface_hub
import pytest
import pytest_asyncio
from huggingface_hub.errors import HfHubHTTPError

from tests.e2e.conftest import Verifier, serving
from tests.e2e.endpoints import endpoint
from tests.e2e.http_doors import PATIENCE_S, caller, with_template

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
MESSAGES: list[Any] = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "Sort a list."}]
CHAT: dict[str, Any] = {"model": "target", "messages": MESSAGES, "max_tokens": 32}
WAYS: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.9, "seed": 11, "top_p": 0.9}]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chatty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Verifier]:
    async with serving(model=with_template(tmp_path_factory.mktemp("chatty"))) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(
    chatty: Verifier, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[huggingface_hub.AsyncInferenceClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        async with endpoint(chatty.address) as address:
            yield huggingface_hub.AsyncInferenceClient(base_url=f"{address}/v1", api_key="unused", timeout=PATIENCE_S)


@pytest.mark.parametrize("params", WAYS)
async def test_its_chats_are_the_verifiers_own(
    chatty: Verifier, client: huggingface_hub.AsyncInferenceClient, params: dict[str, Any]
) -> None:
    async with caller(chatty.http) as direct:
        expected = await direct.chat.completions.create(**CHAT | params)
    answer = await client.chat.completions.create(**CHAT | params)
    (choice,) = answer.choices
    assert choice.message.content == expected.choices[0].message.content
    assert (choice.message.role, choice.finish_reason) == ("assistant", expected.choices[0].finish_reason)
    assert expected.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.system_fingerprint == expected.system_fingerprint


@pytest.mark.parametrize("params", WAYS)
async def test_its_streams_are_too(
    chatty: Verifier, client: huggingface_hub.AsyncInferenceClient, params: dict[str, Any]
) -> None:
    async with caller(chatty.http) as direct:
        expected = await direct.chat.completions.create(**CHAT | params)
    stream = await client.chat.completions.create(**CHAT | params, stream=True, stream_options={"include_usage": True})
    *pieces, last = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == expected.choices[0].message.content
    assert [reason for chunk in pieces if (reason := chunk.choices[0].finish_reason)] == ["length"]
    assert last.usage is not None
    assert last.usage.completion_tokens == 32


async def test_its_blocking_client_streams(chatty: Verifier, client: huggingface_hub.AsyncInferenceClient) -> None:
    def text() -> str:
        assert isinstance(client.model, str)
        blocking = huggingface_hub.InferenceClient(base_url=client.model, api_key="unused", timeout=PATIENCE_S)
        stream = blocking.chat_completion(MESSAGES, model="target", max_tokens=32, temperature=0, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    answer = await client.chat.completions.create(**CHAT, temperature=0)
    assert await asyncio.to_thread(text) == answer.choices[0].message.content


async def test_it_is_told_what_is_wrong(client: huggingface_hub.AsyncInferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match="does not serve model 'gpt-4'"):
        await client.chat.completions.create(**CHAT | {"model": "gpt-4"})
