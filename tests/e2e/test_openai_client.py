"""OpenAI's public client, as it is, against a real server: the reference target on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from pilotfish_core.noise import derive_seed
from pilotfish_core.tokenizer import IncrementalDecoder
from tests.e2e.conftest import Verifier, connected
from tests.e2e.http_doors import TEMPLATE, caller, door, gateway_of

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
PROMPT = "def quicksort(items):\n"
MESSAGES: list[Any] = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "Sort a list."}]
RENDERED = "# system: Write Python.\n# user: Sort a list.\ndef "


@pytest.fixture(scope="session")
def chat_options() -> dict[str, Any]:
    from pilotfish_openai.chat_template import ChatTemplate

    return {"chat_template": ChatTemplate(TEMPLATE, {})}


async def completed(verifier: Verifier, *, extra_body: dict[str, Any] | None = None, **fields: Any) -> Any:
    ask: dict[str, Any] = {"model": "target", "prompt": PROMPT, "max_tokens": 24}
    ask |= fields | {"extra_body": {"ignore_eos": True} | (extra_body or {})}
    async with caller(verifier.http) as client:
        return await client.completions.create(**ask)


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 0.9, "seed": 11, "top_p": 0.9}])
async def test_the_text_is_that_of_a_device(verifier: Verifier, params: dict[str, Any]) -> None:
    answer = await completed(verifier, **params)
    again = await completed(verifier, **params)
    async with connected(verifier) as device:
        stream = await device.generate(PROMPT, max_tokens=24, ignore_eos=True, **params)
        result = await stream.result()
    assert answer.choices[0].text == again.choices[0].text == result.text
    assert answer.choices[0].finish_reason == result.finish_reason
    assert answer.usage.completion_tokens == len(result.token_ids)
    assert answer.usage.prompt_tokens == len(verifier.engine.tokenizer.encode(PROMPT))
    assert answer.system_fingerprint == verifier.engine.info.fingerprint
    assert answer.object == "text_completion"


async def test_a_seed_that_was_not_given_is_reported(verifier: Verifier) -> None:
    first = await completed(verifier)
    again = await completed(verifier, seed=first.metrics["seed"])
    assert again.choices[0].text == first.choices[0].text


async def test_metrics_of_the_response(verifier: Verifier) -> None:
    answer = await completed(verifier, temperature=0)
    metrics = answer.metrics
    assert metrics["ttft_ms"] > 0
    assert metrics["tpot_ms"] > 0
    assert metrics["steps"] + metrics["accepted_tokens"] == answer.usage.completion_tokens
    assert metrics["mean_acceptance_length"] == pytest.approx(24 / metrics["steps"], abs=1e-3)
    assert metrics["drafted_tokens"] >= metrics["accepted_tokens"]


async def test_a_prompt_that_was_there_before_is_cached(verifier: Verifier) -> None:
    prompt = "# " + "a long prefix that is the same " * 8 + "\n"
    await completed(verifier, prompt=prompt, max_tokens=1)
    again = await completed(verifier, prompt=prompt, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens > 16
    assert again.metrics["cached_tokens"] == again.usage.prompt_tokens_details.cached_tokens


async def test_a_stream_is_the_same_text_in_pieces(verifier: Verifier) -> None:
    whole = await completed(verifier, temperature=0)
    async with caller(verifier.http) as client:
        chunks = [
            chunk
            async for chunk in await client.completions.create(
                model="target",
                prompt=PROMPT,
                max_tokens=24,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text
    assert len(pieces) > 4
    assert [chunk.choices[0].finish_reason for chunk in pieces[-2:]] == [None, "length"]
    assert all(chunk.usage is None and chunk.id == last.id for chunk in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    assert last.metrics["seed"] >= 0  # type: ignore[attr-defined]


async def test_stop_strings_are_not_shown(verifier: Verifier) -> None:
    whole = (await completed(verifier, temperature=0)).choices[0].text
    stop = whole[10:13]
    answer = await completed(verifier, temperature=0, stop=stop)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == stop
    async with caller(verifier.http) as client:
        stream = await client.completions.create(
            model="target", prompt=PROMPT, max_tokens=24, temperature=0, stop=["never there", stop], stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == answer.choices[0].text


async def test_logprobs_of_completions(verifier: Verifier) -> None:
    answer = await completed(verifier, temperature=0, logprobs=3)
    scores, text = answer.choices[0].logprobs, answer.choices[0].text
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == 24
    for token, logprob, top, offset in zip(
        scores.tokens, scores.token_logprobs, scores.top_logprobs, scores.text_offset, strict=True
    ):
        assert text[offset:].startswith(token)
        assert top[token] == logprob == max(top.values())  # greedy
        assert 1 <= len(top) <= 3
    async with caller(verifier.http) as client:
        stream = await client.completions.create(
            model="target", prompt=PROMPT, max_tokens=24, temperature=0, logprobs=3, stream=True
        )
        tokens = [token async for chunk in stream for token in chunk.choices[0].logprobs.tokens]  # type: ignore[union-attr]
    assert tokens == scores.tokens
    plain = await completed(verifier, temperature=0, logprobs=0)
    assert plain.choices[0].logprobs.top_logprobs is None
    assert plain.choices[0].logprobs.token_logprobs == scores.token_logprobs


async def test_n_answers_have_sub_seeds(verifier: Verifier) -> None:
    three = await completed(verifier, n=3, seed=5)
    texts = [choice.text for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    for number, text in enumerate(texts):
        alone = await completed(verifier, seed=derive_seed(5, number))
        assert alone.choices[0].text == text
    assert three.usage.completion_tokens == 72
    assert three.usage.prompt_tokens == len(verifier.engine.tokenizer.encode(PROMPT))


async def test_several_prompts_of_either_kind(verifier: Verifier) -> None:
    texts = [PROMPT, "class Stack:\n"]
    ids = [verifier.engine.tokenizer.encode(text) for text in texts]
    by_text = await completed(verifier, prompt=texts, seed=3, n=2)
    by_ids = await completed(verifier, prompt=ids, seed=3, n=2)
    alone = await completed(verifier, prompt=ids[1], seed=3)
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    assert [choice.index for choice in by_text.choices] == [0, 1, 2, 3]
    assert by_text.choices[2].text == alone.choices[0].text
    assert by_text.usage.prompt_tokens == sum(map(len, ids))


async def test_the_prompt_is_echoed(verifier: Verifier) -> None:
    plain = (await completed(verifier, temperature=0)).choices[0].text
    assert (await completed(verifier, temperature=0, echo=True)).choices[0].text == PROMPT + plain
    async with caller(verifier.http) as client:
        stream = await client.completions.create(
            model="target", prompt=PROMPT, max_tokens=24, temperature=0, echo=True, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == PROMPT + plain


async def test_further_sampling_parameters_reach_the_engine(verifier: Verifier) -> None:
    whole = await completed(verifier, temperature=0)
    first = verifier.engine.tokenizer.encode(whole.choices[0].text)[0]
    biased = await completed(verifier, temperature=0, logit_bias={str(first): -100})
    assert not biased.choices[0].text.startswith(whole.choices[0].text[:1])
    stopped = await completed(verifier, temperature=0, extra_body={"stop_token_ids": [first]})
    assert stopped.choices[0].text == ""
    assert stopped.choices[0].stop_reason == first
    longer = await completed(verifier, temperature=0, extra_body={"stop_token_ids": [first], "min_tokens": 2})
    assert longer.usage.completion_tokens > 1
    one = await completed(verifier, seed=2, extra_body={"top_k": 1})
    assert one.choices[0].text == whole.choices[0].text


async def test_chat(verifier: Verifier, chat_options: dict[str, Any]) -> None:
    by_text = await completed(verifier, prompt=RENDERED, temperature=0)
    async with door(verifier, **chat_options) as address, caller(address) as client:
        answer = await client.chat.completions.create(
            model="target", messages=MESSAGES, temperature=0, max_completion_tokens=24, max_tokens=5
        )
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="target", messages=MESSAGES, temperature=0, max_tokens=24, stream=True
            )
        ]
        parts: list[Any] = [{"role": "developer", "content": [{"type": "text", "text": "Write Python."}]}, MESSAGES[1]]
        same = await client.chat.completions.create(
            model="target",
            messages=parts,
            temperature=0,
            max_tokens=24,
        )
    assert answer.choices[0].message.content == by_text.choices[0].text == same.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (by_text.usage.prompt_tokens, 24)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].metrics["steps"] > 0  # type: ignore[attr-defined]
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)


async def test_chat_without_a_limit_goes_on_to_its_end(verifier: Verifier, chat_options: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"model": "target", "messages": MESSAGES, "temperature": 0}
    fields["extra_body"] = {"ignore_eos": True}
    async with door(verifier, **chat_options) as address, caller(address) as client:
        whole = (await client.chat.completions.create(**fields, max_tokens=24)).choices[0].message.content
        stop = whole[-6:]
        answer = await client.chat.completions.create(**fields, stop=stop)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


async def test_logprobs_of_chat(verifier: Verifier, chat_options: dict[str, Any]) -> None:
    async with door(verifier, **chat_options) as address, caller(address) as client:
        answer = await client.chat.completions.create(
            model="target", messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
        )
        stream = await client.chat.completions.create(
            model="target", messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2, stream=True
        )
        streamed = [
            entry async for chunk in stream if (scores := chunk.choices[0].logprobs) for entry in scores.content or ()
        ]
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert len(entries) == 12
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == answer.choices[0].message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert entry.top_logprobs[0].token == entry.token
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


@pytest.mark.parametrize("wrong", [False, True])
async def test_predicted_outputs_change_the_steps_and_not_the_text(verifier: Verifier, wrong: bool) -> None:
    fields: dict[str, Any] = {"temperature": 0.7, "seed": 4, "max_tokens": 60}
    plain = await completed(verifier, **fields)
    text = plain.choices[0].text
    if wrong:
        text = text[:30] + " something else " + text[35:]
    prediction = {"type": "content", "content": text}
    answer = await completed(verifier, **fields, extra_body={"prediction": prediction})
    assert answer.choices[0].text == plain.choices[0].text
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 20
    assert answer.metrics["steps"] < plain.metrics["steps"]
    if wrong:
        assert details.rejected_prediction_tokens > 0
    else:
        assert answer.metrics["steps"] < 30
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0


async def test_a_useless_prediction_is_only_useless(verifier: Verifier) -> None:
    plain = await completed(verifier, seed=9)
    junk = {"type": "content", "content": "the quick brown fox jumps over the lazy dog " * 5}
    answer = await completed(verifier, seed=9, extra_body={"prediction": junk})
    assert answer.choices[0].text == plain.choices[0].text


async def test_the_plain_client_in_a_thread(verifier: Verifier) -> None:
    def ask() -> tuple[list[str], str, str]:
        with openai.OpenAI(base_url=f"{verifier.http}/v1", api_key="unused", max_retries=0) as client:
            names = [model.id for model in client.models.list()]
            answer = client.completions.create(model=names[0], prompt=PROMPT, max_tokens=8, temperature=0)
            stream = client.completions.create(model=names[0], prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
            return names, answer.choices[0].text, "".join(chunk.choices[0].text for chunk in stream)

    names, text, streamed = await asyncio.to_thread(ask)
    assert names == ["target"]
    assert text == streamed


async def test_models(verifier: Verifier) -> None:
    async with caller(verifier.http) as client:
        model = await client.models.retrieve("target")
        assert model.id == "target"
        assert model.max_model_len == verifier.engine.info.max_model_len  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError, match="does not serve model 'other'"):
            await client.models.retrieve("other")


async def test_requests_share_steps_with_each_other(verifier: Verifier) -> None:
    before = verifier.engine.stats()
    answers = await asyncio.gather(*(completed(verifier, seed=seed, max_tokens=40) for seed in range(8)))
    after = verifier.engine.stats()
    assert [answer.usage.completion_tokens for answer in answers] == [40] * 8
    assert after.steps - before.steps < sum(answer.metrics["steps"] for answer in answers) / 2
    assert gateway_of(verifier).running == 0


async def test_text_leaves_in_whole_characters(verifier: Verifier) -> None:
    """Forced to write a character of several tokens: no piece of the stream ends inside it."""
    tokenizer = verifier.engine.tokenizer
    ids = tokenizer.encode("日本", add_special_tokens=False)
    decoder = IncrementalDecoder(tokenizer, continues=True)
    assert any(decoder.push(token) == "" for token in ids)
    async with caller(verifier.http) as client:
        stream = await client.completions.create(
            model="target",
            prompt=PROMPT,
            max_tokens=30,
            temperature=1,
            seed=1,
            logit_bias={str(token): 100 for token in set(ids)},
            stream=True,
        )
        pieces = [chunk.choices[0].text async for chunk in stream]
    answer = await completed(
        verifier, max_tokens=30, temperature=1, seed=1, logit_bias={str(token): 100 for token in set(ids)}
    )
    assert "".join(pieces) == answer.choices[0].text
