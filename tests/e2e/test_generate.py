"""Client and verifier over a real socket: the same text whoever drafts, errors by name, resume, cancel."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pilotfish.addresses import parse_addresses
from pilotfish.client import AsyncClient
from pilotfish.drafters.junk import JunkDrafter
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish.result import Result
from pilotfish.transport import Transport
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import FinishReason, Origin
from pilotfish_core.errors import (
    Cancelled,
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    PromptTooLong,
    ResumeRefused,
    TokenizerMismatch,
    Unavailable,
    UnknownModel,
)
from pilotfish_core.tokenizer import Tokenizer
from tests.e2e.conftest import TARGET, Verifier, connected, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "import os\n\n\nclass Reader:\n    def __init__(self, path):\n"


async def alone(verifier: Verifier, prompt: str = PROMPT, **params: Any) -> Result:
    async with connected(verifier) as client:
        return await (await client.generate(prompt, **params)).result()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["ngram", "junk", "oracle", "half oracle"])
async def test_no_drafter_changes_the_text(verifier: Verifier, kind: str, temperature: float) -> None:
    params: dict[str, Any] = {"temperature": temperature, "max_tokens": 48, "seed": 11}
    expected = await alone(verifier, **params)
    draft: str | Drafter = kind
    tokenizer = verifier.engine.tokenizer
    prompt_ids = tokenizer.encode(PROMPT)
    if kind == "junk":
        draft = JunkDrafter(tokenizer.vocab_size)
    elif kind != "ngram":
        quality = 1.0 if kind == "oracle" else 0.5
        draft = OracleDrafter([[*prompt_ids, *expected.token_ids]], vocab_size=tokenizer.vocab_size, accuracy=quality)
    async with connected(verifier, draft=draft) as client:
        result = await (await client.generate(PROMPT, **params)).result()
    assert (result.text, result.token_ids) == (expected.text, expected.token_ids)
    assert result.finish_reason is FinishReason.LENGTH
    if kind == "oracle":
        assert result.metrics.mean_acceptance_length > 1.5
        assert result.metrics.accepted_draft_tokens > 0


async def test_pieces_make_the_text_and_tell_their_origin(verifier: Verifier) -> None:
    async with connected(verifier, draft="ngram") as client:
        stream = await client.generate(PROMPT * 2, temperature=0, max_tokens=40)
        pieces = [piece async for piece in stream]
        result = await stream.result()
    assert "".join(piece.text for piece in pieces) == result.text
    assert sum((piece.token_ids for piece in pieces), ()) == result.token_ids
    assert {piece.origin for piece in pieces} <= {Origin.ACCEPTED, Origin.RECOVERED, Origin.BONUS, Origin.CLOUD}
    assert result.text == verifier.engine.tokenizer.decode(result.token_ids)


async def test_eight_at_once_equal_each_alone(verifier: Verifier) -> None:
    prompts = [f"def function_{index}(x):\n" for index in range(8)]
    params: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24, "seed": 3}
    singles = [(await alone(verifier, prompt, **params)).token_ids for prompt in prompts]
    async with connected(verifier, draft="ngram") as client:
        streams = [await client.generate(prompt, **params) for prompt in prompts]
        together = await asyncio.gather(*(stream.result() for stream in streams))
    assert [result.token_ids for result in together] == singles


async def test_stop_string_ends_the_text_before_it(verifier: Verifier) -> None:
    whole = await alone(verifier, temperature=0, max_tokens=40)
    stop = whole.text[15:18]
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, temperature=0, max_tokens=40, stop=[stop])
        shown = "".join([piece.text async for piece in stream])
        result = await stream.result()
    assert result.text == shown == whole.text[: whole.text.index(stop)]
    assert (result.finish_reason, result.stop) == (FinishReason.STOP, stop)
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]


async def test_logprobs_come_with_every_token(verifier: Verifier) -> None:
    async with connected(verifier, draft="ngram") as client:
        stream = await client.generate(PROMPT, temperature=0, max_tokens=10, logprobs=3)
        entries = [entry async for piece in stream for entry in piece.logprobs or ()]
    assert len(entries) == 10
    for entry in entries:
        assert len(entry.top) == 3
        assert entry.chosen == pytest.approx(entry.top[0][1])


async def test_cancel_keeps_what_is_committed_and_resume_goes_on_with_it(verifier: Verifier, tmp_path: Path) -> None:
    params: dict[str, Any] = {"temperature": 0.8, "max_tokens": 60, "seed": 5}
    expected = await alone(verifier, **params)
    async with connected(verifier, draft="ngram") as client:
        stream = await client.generate(PROMPT, **params)
        async for _ in stream:
            if len(stream.generation.output) >= 20:
                stream.cancel()
        cut = await stream.result()
        assert cut.finish_reason is FinishReason.ABORT
        assert cut.token_ids == expected.token_ids[: len(cut.token_ids)]
        stream.generation.save(tmp_path / "g.json")
    async with connected(verifier, draft="ngram") as client:
        resumed = await client.resume(tmp_path / "g.json")
        result = await resumed.result()
        assert result.token_ids == expected.token_ids
        assert result.text == expected.text
        with pytest.raises(InvalidRequest, match="has finished"):
            await client.resume(resumed.generation)


async def test_a_resume_moves_to_the_next_address_when_a_verifier_goes() -> None:
    params: dict[str, Any] = {"temperature": 0.8, "max_tokens": 60, "seed": 5}
    async with serving() as first, serving() as second:
        expected = await alone(second, **params)
        async with AsyncClient([first.address, second.address], draft="ngram") as client:
            stream = await client.generate(PROMPT, **params)
            async for _ in stream:
                if len(stream.generation.output) >= 20 and first.server.gateway is not None:
                    await first.server.stop()
                    first.server.gateway = None
            result = await stream.result()
    assert result.token_ids == expected.token_ids
    assert result.metrics.reconnects == 1
    assert len(result.metrics.fingerprints) == 1


async def test_a_finished_output_is_answered_with_its_finish(verifier: Verifier) -> None:
    """The last commit was lost: the cloud must not generate past the end."""
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, temperature=0, max_tokens=8)
        result = await stream.result()
        stream.generation.finish = None
        again = await (await client.resume(stream.generation)).result()
    assert again.token_ids == result.token_ids
    assert again.finish_reason is FinishReason.LENGTH


async def test_a_resume_that_claims_more_than_a_finished_text_is_refused(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, temperature=0, max_tokens=8)
        await stream.result()
        stream.generation.finish = None
        stream.generation.output.append(5)
        with pytest.raises(ResumeRefused, match="ends after 8"):
            await (await client.resume(stream.generation)).result()


async def test_another_fingerprint_is_refused_unless_allowed(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, temperature=0, max_tokens=30)
        async for _ in stream:
            stream.cancel()
        generation = stream.generation
    generation.fingerprint = "pf-of-another-machine"
    async with connected(verifier) as client:
        with pytest.raises(FingerprintMismatch, match="pf-of-another-machine"):
            await (await client.resume(generation)).result()
    async with connected(verifier, allow_other_fingerprint=True) as client:
        assert (await (await client.resume(generation)).result()).finish_reason is FinishReason.LENGTH


async def test_what_the_device_began_alone_goes_on_where_that_is_allowed(verifier: Verifier, tmp_path: Path) -> None:
    file, drafter = tmp_path / "g.json", JunkDrafter(Tokenizer.load(TARGET).vocab_size)
    options: dict[str, Any] = {"draft": drafter, "tokenizer": TARGET, "cloud": "never"}
    async with AsyncClient(None, **options) as client:
        stream = await client.generate(PROMPT, temperature=0, max_tokens=30, ignore_eos=True)
        async for _ in stream:
            stream.cancel()
        await stream.result()
        stream.generation.save(file)
        begun = tuple(stream.generation.output)
    async with connected(verifier) as client:
        with pytest.raises(FingerprintMismatch, match="allow_other_fingerprint"):
            await client.resume(file)
        result = await (await client.resume(file, allow_other_fingerprint=True)).result()
    assert result.token_ids[: len(begun)] == begun
    assert (len(result.token_ids), result.verified) == (30, False)
    assert len(result.metrics.fingerprints) == 2


async def test_its_end_tokens_are_asked_for_without_its_tokenizer(verifier: Verifier) -> None:
    transport = Transport(parse_addresses(verifier.address))
    _, ends = await transport.fetch_tokenizer("")
    assert ends
    assert await transport.fetch_end_tokens("") == (Tokenizer.load(TARGET).hash, ends)
    with pytest.raises(UnknownModel):
        await transport.fetch_end_tokens("gpt-4")
    await transport.close()


async def test_wrong_tokenizer_model_and_prompt_are_named(verifier: Verifier) -> None:
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    other.decoder = tokenizers.decoders.ByteLevel()
    wrong = Tokenizer(other.to_str().encode())
    async with connected(verifier, tokenizer=wrong) as client:
        with pytest.raises(TokenizerMismatch):
            await (await client.generate([0, 1])).result()
    async with connected(verifier, model="nobody") as client:
        with pytest.raises(UnknownModel, match="nobody"):
            await client.generate("x")
    async with connected(verifier, tokenizer=TARGET) as client:
        with pytest.raises(PromptTooLong, match="2048"):
            await (await client.generate([5] * 5000)).result()


async def test_nobody_listens() -> None:
    client = AsyncClient("127.0.0.1:1", draft="ngram", tokenizer=TARGET)
    async with client:
        with pytest.raises(Unavailable):
            await (await client.generate("x", max_tokens=4)).result()


async def test_a_deadline_ends_the_answer_with_its_error(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, max_tokens=1500, ignore_eos=True, timeout_s=0.2)
        with pytest.raises(DeadlineExceeded):
            await stream.result()


async def test_a_newer_attempt_cancels_the_older(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, max_tokens=1500, ignore_eos=True)
        await anext(stream)
        async with connected(verifier) as other:
            newer = await other.resume(stream.generation)
            await anext(newer)
            with pytest.raises(Cancelled, match="superseded"):
                await stream.result()
            await newer.aclose()


async def test_a_resume_from_an_older_save_passes_a_stream_that_is_still_half_open(
    verifier: Verifier, tmp_path: Path
) -> None:
    """After the save the device reconnected, then crashed: the verifier has not noticed yet."""
    params: dict[str, Any] = {"temperature": 0.8, "max_tokens": 1500, "ignore_eos": True, "seed": 5}
    async with connected(verifier) as crashed:
        stream = await crashed.generate(PROMPT, **params)
        await anext(stream)
        stream.generation.save(tmp_path / "g.json")
        for _ in range(3):
            await stream.aclose()
            stream = await crashed.resume(stream.generation)
            await anext(stream)
        await asyncio.sleep(1.0)  # the app starts again
        async with connected(verifier) as client:
            resumed = await client.resume(tmp_path / "g.json")
            await anext(resumed)
            with pytest.raises(Cancelled, match="superseded"):
                await stream.result()
            await resumed.aclose()


async def test_a_bad_drafter_does_not_end_the_answer(verifier: Verifier) -> None:
    vocabulary = verifier.engine.tokenizer.vocab_size
    expected = await alone(verifier, max_tokens=24, temperature=0.8, seed=2)
    async with connected(verifier, draft=JunkDrafter(100 * vocabulary)) as client:
        result = await (await client.generate(PROMPT, max_tokens=24, temperature=0.8, seed=2)).result()
    assert result.token_ids == expected.token_ids
    assert f"outside the vocabulary of {vocabulary}" in (result.metrics.drafter_error or "")


async def test_closing_the_client_frees_the_verifier(verifier: Verifier) -> None:
    async with connected(verifier) as client:
        stream = await client.generate(PROMPT, max_tokens=1500, ignore_eos=True)
        await anext(stream)
    gateway = verifier.server.gateway
    assert gateway is not None
    async with asyncio.timeout(10.0):
        await gateway._idle.wait()
    assert gateway.running == 0
