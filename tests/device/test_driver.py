"""One generation between a scripted verifier, a drafter and the app."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pilotfish.generation import Generation
from pilotfish.offline import OfflineChoice
from pilotfish.result import Piece, Result
from pilotfish_core.device_actions import Action, DeviceConfig
from pilotfish_core.device_core import DeviceState
from pilotfish_core.drafter import DraftContext
from pilotfish_core.drafts import Commit, Finish, FinishReason, Origin
from pilotfish_core.errors import FingerprintMismatch, InvalidRequest, PromptTooLong, ProtocolViolation, Unavailable
from pilotfish_core.messages import Opened
from pilotfish_core.modes import Arm
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.retry import RetryPolicy
from pilotfish_core.wire import MAX_FRAME_BYTES
from tests.device.verifiers import (
    END,
    LENGTH,
    PROMPT,
    TOKENIZER,
    ListDrafter,
    Script,
    ScriptedStream,
    ScriptedTransport,
    byte_tokenizer,
    driving,
    generation,
    ids,
    opened,
    run,
)

AT = len(PROMPT)


def says(*messages: Opened | Commit, then: Exception | None = None) -> Script:
    async def script(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        for message in messages:
            yield message
        if then is not None:
            raise then

    return script


def commits(text: str, position: int, finish: Finish | None = None, tail: Sequence[int] = ()) -> Commit:
    return Commit(position=position, tokens=(*ids(text), *tail), finish=finish)


# -- text ----------------------------------------------------------------------------------------------------------


async def test_an_end_id_of_the_devices_own_folder_ends_no_text() -> None:
    """The draft folder may name other end tokens than the target's; the cloud goes on, and so does the text."""
    verifier = ScriptedTransport(says(opened(), commits("x", AT, tail=[END]), commits("yz", AT + 2, LENGTH)))
    pieces, result = await run(generation(), verifier)
    assert result.text == "".join(piece.text for piece in pieces) == "x<end>yz"
    assert result.token_ids == (*ids("x"), END, *ids("yz"))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("origin", [Origin.ACCEPTED, Origin.CLOUD])
async def test_the_text_of_the_end_token_is_hidden(known: bool, origin: Origin) -> None:
    """The cloud names it; whether this device's tokenizer knows it as an end token does not matter."""
    last = commits("y", AT + 1, Finish(FinishReason.STOP, END), tail=[END])
    if origin is Origin.ACCEPTED:
        last = Commit(position=last.position, tokens=last.tokens, accepted=2, finish=last.finish)
    verifier = ScriptedTransport(says(opened(), commits("x", AT), last))
    tokenizer = byte_tokenizer(eos_token_ids=[END] if known else [])
    pieces, result = await run(generation(), verifier, tokenizer=tokenizer)
    assert result.text == "".join(piece.text for piece in pieces) == "xy"
    assert result.token_ids == (*ids("xy"), END)
    assert result.stop == END


async def test_an_end_token_that_was_ignored_keeps_its_text() -> None:
    verifier = ScriptedTransport(says(opened(), commits("x", AT, LENGTH, tail=[END])))
    _, result = await run(generation(ignore_eos=True), verifier)
    assert result.text == "x<end>"


async def test_what_might_have_become_a_stop_string_is_shown_before_the_end_token() -> None:
    verifier = ScriptedTransport(says(opened(), commits("xST", AT, Finish(FinishReason.STOP, END), tail=[END])))
    pieces, result = await run(generation(stop=["STOP"]), verifier)
    assert result.text == "".join(piece.text for piece in pieces) == "xST"


async def test_a_resume_that_hears_only_now_that_it_had_ended_hides_the_end_token() -> None:
    answer = generation()
    answer.output += [*ids("xy"), END]
    finish = Commit(position=AT + 3, tokens=(), finish=Finish(FinishReason.STOP, END))
    pieces, result = await run(answer, ScriptedTransport(says(opened(), finish)))
    assert (pieces, result.text, result.token_ids) == ([], "xy", (*ids("xy"), END))


async def test_a_resume_goes_on_with_the_text_that_it_holds() -> None:
    answer = generation(stop=["STOP"])
    answer.output += ids("xST")
    verifier = ScriptedTransport(says(opened(), commits("ay", AT + 3, LENGTH)))
    pieces, result = await run(answer, verifier)
    assert result.text == "xSTay"
    assert pieces[0].text == "STay"  # "ST" was held back


# -- fingerprints --------------------------------------------------------------------------------------------------


async def test_the_fingerprint_is_that_of_the_first_token() -> None:
    """The replica that died before it decided anything leaves no trace."""
    verifier = ScriptedTransport(
        says(opened("pf-a"), then=Unavailable("gone")),
        says(opened("pf-b"), commits("x", AT), then=Unavailable("gone")),
        says(opened("pf-b"), commits("y", AT + 1, LENGTH)),
    )
    answer = generation()
    _, result = await run(answer, verifier)
    assert [stream.opening.fingerprint for stream in verifier.streams] == ["", "", "pf-b"]
    assert (answer.fingerprint, answer.mixed) == ("pf-b", False)
    assert result.metrics.fingerprints == ("pf-b",)


async def test_an_empty_answer_that_an_older_version_pinned_is_free_again() -> None:
    answer = generation()
    answer.fingerprint = "pf-a"
    verifier = ScriptedTransport(says(opened("pf-b"), commits("x", AT, LENGTH)))
    await run(answer, verifier)
    assert verifier.streams[0].opening.fingerprint == ""
    assert answer.fingerprint == "pf-b"


async def test_going_on_under_another_fingerprint_is_marked() -> None:
    answer = generation()
    answer.output += ids("x")
    answer.fingerprint = "pf-a"
    verifier = ScriptedTransport(
        says(opened("pf-c", other_fingerprint=True), then=Unavailable("gone")),  # decided nothing
        says(opened("pf-b", other_fingerprint=True), commits("x", AT), commits("y", AT + 1, LENGTH)),
    )
    _, result = await run(answer, verifier, allow_other_fingerprint=True)
    assert answer.mixed
    assert result.metrics.fingerprints == answer.fingerprints == ("pf-a", "pf-b")


async def test_a_refused_fingerprint_is_tried_at_the_next_address() -> None:
    answer = generation()
    answer.output += ids("x")
    answer.fingerprint = "pf-a"
    verifier = ScriptedTransport(
        says(then=FingerprintMismatch("other")), says(opened("pf-a"), commits("y", AT + 1, LENGTH)), addresses=2
    )
    _, result = await run(answer, verifier)
    assert result.text == "xy"
    assert not answer.mixed


@pytest.mark.parametrize("offline", [False, True])
async def test_an_answer_that_no_address_would_go_on_with_says_so(offline: bool) -> None:
    """It is not tried for ever: the replicas do not change, however long the device waits."""
    answer = generation()
    answer.output += ids("x")
    answer.fingerprint = "pf-a"
    verifier = ScriptedTransport(
        says(then=FingerprintMismatch("other")),
        says(then=Unavailable("gone")),
        says(then=FingerprintMismatch("other")),
        says(then=FingerprintMismatch("another one")),
        addresses=2,
    )
    options: dict[str, Any] = {}
    if offline:
        options = {"drafter": ListDrafter([65]), "offline": OfflineChoice().changed("draft", None, 0.5)}
    with pytest.raises(FingerprintMismatch, match=r"another one.*allow_other_fingerprint"):
        await run(answer, verifier, **options)
    assert len(verifier.streams) == 4


async def test_a_stream_between_two_refusals_counts() -> None:
    """The first address has another replica by now."""
    answer = generation()
    answer.output += ids("x")
    answer.fingerprint = "pf-a"
    verifier = ScriptedTransport(
        says(then=FingerprintMismatch("other")),
        says(opened("pf-a"), commits("y", AT + 1), then=Unavailable("gone")),
        says(then=Unavailable("not yet")),
        says(then=FingerprintMismatch("other")),
        says(opened("pf-a"), commits("z", AT + 2, LENGTH)),
        addresses=2,
    )
    _, result = await run(answer, verifier)
    assert result.text == "xyz"


@pytest.mark.parametrize(
    ("decided_by", "asked"),
    [
        (["device-only:small", "pf-a"], "pf-a"),  # kept offline before any verifier was there, then gone on with
        (["pf-a", "device-only:small"], "pf-a"),
        (["device-only:small"], "device-only:small"),  # which only goes where that is allowed
    ],
)
async def test_a_kept_answer_that_was_loaded_asks_for_the_verifier_that_went_on(
    decided_by: list[str], asked: str
) -> None:
    answer = generation()
    answer.output += ids("x")
    answer.fingerprint, *answer.other_fingerprints = decided_by
    verifier = ScriptedTransport(says(opened("pf-a"), commits("y", AT + 1, LENGTH)))
    _, result = await run(answer, verifier)
    assert (result.text, result.verified) == ("xy", False)
    assert verifier.streams[0].opening.fingerprint == asked


# -- drafters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [TOKENIZER.vocab_size, -1, 2**40, 1.5, None])
async def test_a_token_outside_the_vocabulary_ends_the_drafting_not_the_answer(bad: Any) -> None:
    drafter = ListDrafter([65, bad, 66])

    async def script(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened()
        yield commits("x", AT)
        await stream.steered.wait()  # it drafts no more
        yield commits("y", AT + 1, LENGTH)

    verifier = ScriptedTransport(script)
    _, result = await run(generation(), verifier, drafter=drafter, config=DeviceConfig(draft_chunk=3))
    assert result.text == "xy"
    assert all(
        0 <= token < TOKENIZER.vocab_size for stream in verifier.streams for r in stream.runs for token in r.tokens
    )
    assert result.metrics.drafter_error is not None
    if isinstance(bad, int):
        assert str(bad) in result.metrics.drafter_error


class BadContext(DraftContext):
    """Does one thing wrong."""

    def __init__(self, fault: Callable[[int], Any], closing: BaseException | None = None) -> None:
        self.length_held = 0
        self._fault, self._closing = fault, closing

    @property
    def length(self) -> int:
        return self.length_held

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length_held
        self.length_held = length

    def extend(self, tokens: Sequence[int]) -> None:
        self.length_held += len(tokens)

    def draft(self, count: int) -> Any:
        tokens = self._fault(count)
        self.length_held += len(tokens)
        return tokens

    def close(self) -> None:
        if self._closing is not None:
            raise self._closing


class BadDrafter(ListDrafter):
    def __init__(self, context: BadContext) -> None:
        super().__init__()
        self.context = context

    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        return self.context


def raising(error: BaseException) -> Callable[[int], Any]:
    def draft(count: int) -> Any:
        raise error

    return draft


async def answer_with(
    drafter: BadDrafter, *, failing: bool = False, **options: Any
) -> tuple[ScriptedTransport, Result]:
    """A verifier that waits until the drafter was asked or, where it is ``failing``, given up."""
    asked = threading.Event()
    fault = drafter.context._fault

    def draft(count: int) -> Any:
        asked.set()
        return fault(count)

    drafter.context._fault = draft

    async def script(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened()
        yield commits("x", AT)
        await (stream.steered.wait() if failing else asyncio.to_thread(asked.wait, 20))
        yield commits("y", AT + 1)
        yield commits("z", AT + 2, LENGTH)

    verifier = ScriptedTransport(script)
    _, result = await run(generation(), verifier, drafter=drafter, **options)
    assert result.text == "xyz"
    return verifier, result


@pytest.mark.parametrize(
    "error",
    [RuntimeError("broken"), StopIteration("odd"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()],
)
async def test_a_drafter_that_raises_ends_the_drafting_not_the_answer(error: BaseException) -> None:
    _, result = await answer_with(BadDrafter(BadContext(raising(error))), failing=True)
    assert result.metrics.drafter_error is not None
    assert type(error).__name__ in result.metrics.drafter_error


@pytest.mark.parametrize("arm", [Arm.ASYNC, Arm.LOCKSTEP, Arm.AUTO])
async def test_of_too_many_draft_tokens_those_asked_for_are_taken(arm: Arm) -> None:
    config = DeviceConfig(window=3, arm=arm, adaptive=False)
    verifier, result = await answer_with(BadDrafter(BadContext(lambda count: [65] * 1000)), config=config)
    assert result.metrics.drafter_error is None
    assert all(len(drafted.tokens) <= 3 for drafted in verifier.streams[0].runs)


async def test_what_a_drafter_returns_need_not_be_pythons_own_numbers() -> None:
    _, result = await answer_with(BadDrafter(BadContext(lambda count: np.full(count, 65, dtype=np.int64))))
    assert result.metrics.drafter_error is None


async def test_a_context_that_cannot_be_closed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    await answer_with(BadDrafter(BadContext(lambda count: [], OSError("gone"))))
    assert [record.getMessage() for record in caplog.records] == [
        "the drafter's context could not be closed: OSError: gone"
    ]


# -- time ----------------------------------------------------------------------------------------------------------


async def test_a_timer_that_fires_early_is_armed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "_clock_resolution", 0.2)
    config = DeviceConfig(ping_after_s=0.03, ping_timeout_s=0.03, retry=RetryPolicy(max_first_attempts=1))
    with pytest.raises(Unavailable, match="nothing heard"):
        async with asyncio.timeout(60):
            await run(generation(), ScriptedTransport(says()), config=config)


async def test_a_stream_that_is_given_up_is_left_before_the_next_one_is_tried() -> None:
    left = asyncio.Event()

    async def script(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        await stream._over.wait()
        left.set()
        yield opened()  # a verifier that hung goes on

    config = DeviceConfig(ping_after_s=0.03, ping_timeout_s=0.03, retry=RetryPolicy(base_s=1e6, cap_s=1e6))
    with driving(generation(), ScriptedTransport(script), config=config) as driver:
        running = asyncio.create_task(driver.run())
        async with asyncio.timeout(60):
            await left.wait()
        assert driver._core.state is DeviceState.WAITING
        driver.cancel()
        await running
        assert isinstance(driver.outcome.result(), Result)


async def test_who_leaves_a_verifier_that_hangs_goes_elsewhere() -> None:
    verifier = ScriptedTransport(says(), says(opened(), commits("x", AT, LENGTH)))
    config = DeviceConfig(ping_after_s=0.03, ping_timeout_s=0.03)
    async with asyncio.timeout(60):
        await run(generation(), verifier, config=config)
    assert len(set(verifier.routes)) == len(verifier.routes) == 2


async def test_the_app_has_its_piece_before_anybody_thinks_of_the_next_draft() -> None:
    order: list[str] = []
    looked = asyncio.Event()

    async def script(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened()
        yield commits("x", AT)
        await looked.wait()
        yield commits("y", AT + 1, LENGTH)

    with driving(generation(), ScriptedTransport(script), drafter=ListDrafter([65])) as driver:
        look_ahead = driver._core.look_ahead

        def looking(now: float) -> list[Action]:
            if driver._core._looking:
                order.append("looked")
                looked.set()
            return look_ahead(now)

        driver._core.look_ahead = looking  # type: ignore[method-assign]

        async def read() -> None:
            while isinstance(piece := await driver.pieces.get(), Piece):
                order.append(piece.text)

        async with asyncio.timeout(30):
            await asyncio.gather(read(), driver.run())
    assert order == ["x", "looked", "y"]


async def test_what_is_asked_before_it_runs_is_done_then() -> None:
    with driving(generation(), ScriptedTransport(says(opened()))) as driver:
        driver.cancel()
        await driver.run()
    result = driver.outcome.result()
    assert isinstance(result, Result)
    assert result.finish_reason is FinishReason.ABORT


# -- what cannot be sent -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"attempt": 2**32}, {"tokenizer_hash": "no hex"}, {"prompt": (2**40,)}, {"model": "\ud800"}]
)
async def test_what_the_wire_cannot_carry_opens_no_call(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "params": SamplingParams(), "tokenizer_hash": TOKENIZER.hash}
    verifier = ScriptedTransport(says(opened()))
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        await run(Generation(**fields | change), verifier)
    assert verifier.streams == []


async def test_a_prompt_larger_than_a_frame_opens_no_call() -> None:
    answer = Generation(prompt=(128,) * (MAX_FRAME_BYTES // 2), params=SamplingParams(), tokenizer_hash=TOKENIZER.hash)
    verifier = ScriptedTransport(says(opened()))
    with pytest.raises(PromptTooLong, match=f"{MAX_FRAME_BYTES // 2} tokens .* at most {MAX_FRAME_BYTES} "):
        await run(answer, verifier)
    assert verifier.streams == []


async def test_a_verifier_that_opens_in_another_protocol_ends_it() -> None:
    verifier = ScriptedTransport(says(opened(protocol_version=2), commits("x", AT, LENGTH)))
    with pytest.raises(ProtocolViolation, match="protocol version 2"):
        await run(generation(), verifier)
    assert len(verifier.streams) == 1


async def test_the_outcome_and_the_end_of_the_pieces_are_the_same() -> None:
    with driving(generation(), ScriptedTransport(says(opened(), commits("x", AT, LENGTH)))) as driver:
        await driver.run()
    pieces = [driver.pieces.get_nowait() for _ in range(driver.pieces.qsize())]
    assert pieces[-1] is driver.outcome.result()
