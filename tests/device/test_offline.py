"""An answer whose link goes away in the middle: what the app is shown meanwhile, and what becomes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pilotfish.async_client import AsyncClient
from pilotfish.driver import GenerationDriver
from pilotfish.generation import ALONE, Generation
from pilotfish.offline import Ask, OfflineChoice, Unconfirmed
from pilotfish.result import Confirmed, Piece, Result, Revised
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.drafts import Commit, Finish, FinishReason, Origin
from pilotfish_core.errors import InvalidParameter, LocalError, PilotfishError, Unavailable
from pilotfish_core.messages import Opened, Ticket
from pilotfish_core.parameters import SamplingParams
from tests.device.verifiers import (
    END,
    LENGTH,
    PROMPT,
    TOKENIZER,
    ListDrafter,
    ScriptedStream,
    ScriptedTransport,
    driving,
    ids,
    opened,
)
from tests.device.verifiers import generation as answer_of

AT = len(PROMPT)
NEVER = 10**6


class Writer(Drafter):
    """A draft model that writes these tokens, whatever it is given."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.name, self.tokenizer_hash, self.max_length = "writer", None, None
        self.tokens = tuple(tokens)

    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        return _Writing(self.tokens, prompt_length)


class _Writing(DraftContext):
    def __init__(self, tokens: tuple[int, ...], begin: int) -> None:
        self._tokens, self._begin, self._length = tokens, begin, 0

    @property
    def length(self) -> int:
        return self._length

    def rewind(self, length: int) -> None:
        self._length = length

    def extend(self, tokens: Sequence[int]) -> None:
        self._length += len(tokens)

    def draft(self, count: int) -> list[int]:
        begin = self._length - self._begin
        drafted = list(self._tokens[begin : begin + count])
        self._length += len(drafted)
        return drafted


class Verifier(ScriptedTransport):
    """Its target writes ``tokens``; after ``cut_at`` of them the link is away until ``back`` is set."""

    def __init__(self, tokens: Sequence[int], *, cut_at: int, finish: Finish = LENGTH, by: int = 1) -> None:
        super().__init__(self._script)
        self.back = asyncio.Event()
        self.said_all = asyncio.Event()
        self._tokens, self._cut_at, self._finish, self._by = tuple(tokens), cut_at, finish, by

    async def _script(self, stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        if len(stream.opening.output) >= self._cut_at and not self.back.is_set():
            raise Unavailable("no route to host")
        yield opened()
        held = len(stream.opening.output)
        while held < len(self._tokens):
            if held >= self._cut_at and not self.back.is_set():
                raise Unavailable("no route to host")
            fresh = self._tokens[held : held + self._by]
            yield Commit(AT + held, fresh, finish=self._finish if held + self._by >= len(self._tokens) else None)
            held += len(fresh)
        self.said_all.set()


class App:
    """Shows what comes, as an app would: ``screen`` is the text, ``tokens`` what it was told is verified."""

    def __init__(self) -> None:
        self.screen, self.tokens, self.verified_text = "", list[int](), ""
        self.seen: list[Piece] = []

    def take(self, piece: Piece) -> None:
        self.seen.append(piece)
        if isinstance(piece, Revised):
            assert self.screen[piece.offset :] == piece.removed
            assert piece.position == AT + len(self.tokens)
            self.screen = self.screen[: piece.offset]
        self.screen += piece.text
        self.verified_text += piece.verified_text
        if piece.verified:
            self.tokens += piece.token_ids

    async def watch(self, driver: GenerationDriver, count: int) -> None:
        """Until so many unverified tokens were shown."""
        while len(self.unverified) < count:
            piece = await driver.pieces.get()
            assert isinstance(piece, Piece)
            self.take(piece)

    def of(self, kind: type[Piece]) -> list[Piece]:
        return [piece for piece in self.seen if type(piece) is kind]

    @property
    def unverified(self) -> list[int]:
        return [token for piece in self.seen if not piece.verified for token in piece.token_ids]


def choice(on_reconnect: Any = "verify") -> OfflineChoice:
    return OfflineChoice().changed("draft", on_reconnect, 0.3)


async def follow(
    verifier: Verifier,
    drafter: Drafter,
    offline: OfflineChoice,
    *,
    until: int,
    answer: Generation | None = None,
    app: App | None = None,
) -> tuple[App, Result]:
    """The link is back once so many unverified tokens were shown."""
    app = app or App()
    with driving(answer or answer_of(), verifier, drafter=drafter, offline=offline) as driver:
        running = asyncio.create_task(driver.run())
        async with asyncio.timeout(30):
            while isinstance(item := await driver.pieces.get(), Piece):
                app.take(item)
                if len(app.unverified) >= until:
                    verifier.back.set()
            await running
    if isinstance(item, PilotfishError):
        raise item
    return app, item


async def test_what_the_target_would_have_written_too_stays() -> None:
    text = ids("the same words from both of them")
    app, result = await follow(Verifier(text, cut_at=4), Writer(text), choice(), until=20)
    assert app.screen == result.text == app.verified_text == "the same words from both of them"
    assert tuple(app.tokens) == result.token_ids == text
    assert not app.of(Revised)
    assert len(app.unverified) >= 20
    confirmed = [token for piece in app.of(Confirmed) for token in piece.token_ids]
    assert confirmed == app.unverified
    assert result.verified
    metrics = result.metrics
    assert metrics.unverified_tokens == metrics.confirmed_tokens == len(app.unverified)
    assert metrics.withdrawn_tokens == 0


async def test_what_differs_is_replaced_and_nothing_else() -> None:
    target, draft = ids("the cat sat on the mat"), ids("the cat lay in the sun")
    app, result = await follow(Verifier(target, cut_at=3), Writer(draft), choice(), until=len(draft) - 3)
    assert app.screen == result.text == app.verified_text == "the cat sat on the mat"
    assert tuple(app.tokens) == result.token_ids == target
    (revised,) = app.of(Revised)
    assert isinstance(revised, Revised)
    assert (revised.position, revised.offset) == (AT + 8, 8)
    assert (revised.removed, revised.text) == ("lay in the sun", "s")
    assert result.metrics.withdrawn_tokens == len("lay in the sun")
    assert result.verified


@pytest.mark.parametrize("by", [1, 3, 50])
async def test_every_unverified_token_is_confirmed_or_withdrawn_whatever_the_commits_are(by: int) -> None:
    target, draft = ids("abcdefghijklmnopqrstuvwxyz"), ids("abcdefghijklmXXXXX")
    app, result = await follow(Verifier(target, cut_at=2, by=by), Writer(draft), choice(), until=9)
    assert app.screen == result.text == app.verified_text
    assert tuple(app.tokens) == target
    metrics = result.metrics
    assert metrics.confirmed_tokens + metrics.withdrawn_tokens == metrics.unverified_tokens == len(app.unverified)


async def test_a_character_of_several_tokens_and_a_stop_string_are_cut_as_ever() -> None:
    """Unverified text obeys the same rules: no half characters, nothing of a stop string."""
    target = ids("aé€bSTOP")
    stopped = Finish(FinishReason.STOP, "STOP")
    app, result = await follow(
        Verifier(target, cut_at=1, finish=stopped),
        Writer(target),
        choice(),
        until=len(target) - 1,
        answer=answer_of(stop=["STOP"]),
    )
    assert app.screen == result.text == "aé€b"
    assert all("\ufffd" not in piece.text and "S" not in piece.text for piece in app.seen)
    assert not app.of(Revised)


async def test_the_device_ends_its_text_at_an_end_token_and_waits() -> None:
    target, draft = ids("one two three"), (*ids("one"), END, *ids("rubbish behind the end"))
    app, result = await follow(Verifier(target, cut_at=1), Writer(draft), choice(), until=3)
    assert app.unverified == [*ids("ne"), END]
    assert app.screen == result.text == "one two three"
    assert all("<end>" not in piece.text for piece in app.seen)


async def test_an_answer_that_ends_where_the_device_went_on_is_cut_back() -> None:
    target = (*ids("short"), END)
    app, result = await follow(
        Verifier(target, cut_at=1, finish=Finish(FinishReason.STOP, END)), Writer(ids("shortbread")), choice(), until=9
    )
    assert app.screen == result.text == app.verified_text == "short"
    assert result.token_ids == target


async def test_a_link_that_is_away_from_the_start() -> None:
    text = ids("from the very first token on")
    app, result = await follow(Verifier(text, cut_at=0), Writer(text), choice(), until=10)
    assert not app.seen[0].verified
    assert app.screen == result.text == "from the very first token on"
    assert tuple(app.tokens) == text


async def test_by_default_nothing_unverified_is_shown() -> None:
    verifier = Verifier(ids("plain"), cut_at=2)
    with driving(answer_of(), verifier, drafter=Writer(ids("plain"))) as driver:
        await driver.run()
        pieces = [driver.pieces.get_nowait() for _ in range(driver.pieces.qsize())]
    assert isinstance(pieces[-1], Unavailable)
    assert all(piece.verified for piece in pieces if isinstance(piece, Piece))


async def test_an_end_token_that_the_target_went_past_ends_nothing() -> None:
    """The draft folder names it as one, and the target has shown that it is none."""
    target = (*ids("a"), END, *ids("bcdefgh"))
    app, result = await follow(Verifier(target, cut_at=3), Writer(target), choice(), until=6)
    assert app.screen == result.text == "a<end>bcdefgh"
    assert len(app.unverified) == 6


# -- killed and resumed ----------------------------------------------------------------------------------------------


async def killed_alone(target: tuple[int, ...], draft: tuple[int, ...], shown: int, file: Path) -> App:
    """The process is gone, without a word, once so many unverified tokens were shown and the answer was saved."""
    app = App()
    with driving(answer_of(), Verifier(target, cut_at=3), drafter=Writer(draft), offline=choice()) as driver:
        running = asyncio.create_task(driver.run())
        await app.watch(driver, shown)
        driver.generation.save(file)
        running.cancel()
        await asyncio.wait([running])
    return app


@pytest.mark.parametrize("on_reconnect", ["verify", "keep"])
@pytest.mark.parametrize("reconnects", [True, False])  # at once, or after it went on alone for a while
async def test_what_was_shown_before_a_restart_is_confirmed_or_revised_too(
    tmp_path: Path, on_reconnect: str, reconnects: bool
) -> None:
    target, draft = ids("the cat sat on the mat"), ids("the cat lay in the sun, all day")
    first = await killed_alone(target, draft, 11, tmp_path / "g.json")
    answer = Generation.load(tmp_path / "g.json")
    assert answer.unverified == draft[3:14]
    assert first.screen == "the cat lay in"
    second = App()
    second.screen, second.tokens = first.screen[:3], list(answer.output)  # what is verified, from the file
    verifier = Verifier(target, cut_at=3)
    if reconnects:
        verifier.back.set()
    until = 11 if reconnects else 15
    _, result = await follow(verifier, Writer(draft), choice(on_reconnect), until=until, answer=answer, app=second)
    assert second.seen[0].text == " cat lay in"
    assert not second.seen[0].verified
    if on_reconnect == "verify":
        assert second.screen == result.text == "the cat sat on the mat"
        assert tuple(second.tokens) == result.token_ids == target
        assert result.metrics.confirmed_tokens == len(" cat ")
    else:
        assert second.screen == result.text
        assert result.text.startswith("the cat lay in")
        assert result.metrics.kept_tokens >= 11
    assert result.verified is (on_reconnect == "verify")
    assert answer.unverified == ()


async def test_an_end_that_was_shown_before_a_restart_is_known_as_one(tmp_path: Path) -> None:
    target, draft = ids("one two three"), (*ids("one"), END, *ids("rubbish"))
    await killed_alone(target, draft, 1, tmp_path / "g.json")
    app = App()
    app.screen, app.tokens = "one", list(ids("one"))
    answer = Generation.load(tmp_path / "g.json")
    assert answer.unverified == (END,)
    verifier = Verifier(target, cut_at=3)
    verifier.back.set()
    await follow(verifier, Writer(draft), choice(), until=1, answer=answer, app=app)
    assert app.screen == "one two three"
    assert all("<end>" not in piece.text for piece in app.seen)


async def test_a_resume_that_waits_shows_nothing_unverified(tmp_path: Path) -> None:
    target = ids("the cat sat on the mat")
    await killed_alone(target, target, 5, tmp_path / "g.json")
    verifier = Verifier(target, cut_at=3)
    verifier.back.set()
    async with AsyncClient("scripted:1", draft=Writer(target), tokenizer=TOKENIZER) as client:
        client._transport = verifier
        stream = await client.resume(tmp_path / "g.json")
        assert all([piece.verified async for piece in stream])
        assert (await stream.result()).text == "the cat sat on the mat"


# -- keep ------------------------------------------------------------------------------------------------------------


async def test_what_is_kept_stands_and_the_target_goes_on_behind_it() -> None:
    answer = answer_of()
    answer.ticket = None
    target, draft = ids("the cat sat on the mat"), ids("the dog lay in")
    verifier = Verifier(target, cut_at=4)
    app, result = await follow(verifier, Writer(draft), choice("keep"), until=len(draft) - 4, answer=answer)
    assert app.screen == result.text == "the dog lay in the mat"
    assert not result.verified
    assert not app.of(Revised)
    assert not app.of(Confirmed)
    assert answer.fingerprints == ("pf-a", ALONE + "writer")
    assert verifier.streams[-1].opening.fingerprint == "pf-a"  # of the verifier's own tokens
    assert result.metrics.kept_tokens == 10


async def test_an_answer_that_is_kept_ends_without_the_link() -> None:
    draft = (*ids("done"), END)
    app, result = await follow(Verifier(ids("whatever"), cut_at=0), Writer(draft), choice("keep"), until=NEVER)
    assert app.screen == result.text == "done"
    assert result.finish_reason is FinishReason.STOP
    assert not result.verified
    assert result.token_ids == draft


# -- ask -------------------------------------------------------------------------------------------------------------


def answers(what: Any, heard: list[Unconfirmed]) -> Iterable[Ask]:
    async def later(about: Unconfirmed) -> str:
        heard.append(about)
        return str(what)

    def in_a_thread(about: Unconfirmed) -> str:
        assert threading.current_thread() is not threading.main_thread()
        heard.append(about)
        return str(what)

    return later, in_a_thread


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("what", "text"), [("verify", "the cat sat on the mat"), ("keep", "the dog lay in the mat")])
async def test_an_app_that_is_asked_decides(kind: int, what: str, text: str) -> None:
    heard: list[Unconfirmed] = []
    ask = list(answers(what, heard))[kind]
    target, draft = ids("the cat sat on the mat"), ids("the dog lay in")
    app, result = await follow(Verifier(target, cut_at=4), Writer(draft), choice(ask), until=len(draft) - 4)
    assert app.screen == result.text == text
    assert heard[-1] == Unconfirmed(text="dog lay in", token_ids=ids("dog lay in"), position=AT + 4)
    assert result.verified is (what == "verify")


async def test_what_the_cloud_commits_while_the_app_thinks_is_delivered_in_order() -> None:
    """The whole answer came, its end too, before the app said anything; the device's text ends within it."""
    text = ids("abcdefghij")
    verifier = Verifier(text, cut_at=2)
    said = asyncio.Event()

    async def ask(about: Unconfirmed) -> str:
        await said.wait()
        return "verify"

    with driving(answer_of(), verifier, drafter=Writer(text[:6]), offline=choice(ask)) as driver:
        running = asyncio.create_task(driver.run())
        app = App()
        await app.watch(driver, 4)
        verifier.back.set()
        await verifier.said_all.wait()
        assert driver.pieces.empty()
        said.set()
        while isinstance(item := await driver.pieces.get(), Piece):
            app.take(item)
        await running
    assert isinstance(item, Result)
    assert app.screen == item.text == app.verified_text == "abcdefghij"
    assert tuple(app.tokens) == text


async def test_an_app_may_think_for_longer_than_the_cloud_writes() -> None:
    """Nothing is asked or computed again because the stream is over."""
    text = ids("abcdefghij")
    verifier, said, heard = Verifier(text, cut_at=2), asyncio.Event(), list[Unconfirmed]()

    async def ask(about: Unconfirmed) -> str:
        heard.append(about)
        await said.wait()
        return "verify"

    with driving(answer_of(), verifier, drafter=Writer(text[:6]), offline=choice(ask)) as driver:
        running = asyncio.create_task(driver.run())
        app = App()
        await app.watch(driver, 4)
        verifier.back.set()
        await verifier.said_all.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        streams = len(verifier.streams)
        assert driver._core.next_deadline() is None
        said.set()
        while isinstance(item := await driver.pieces.get(), Piece):
            app.take(item)
        await running
    assert isinstance(item, Result)
    assert app.screen == item.text == "abcdefghij"
    assert len(heard) == 1
    assert len(verifier.streams) == streams


async def test_an_answer_that_is_neither_is_an_error_that_says_so() -> None:
    ask = next(iter(answers("perhaps", [])))
    with pytest.raises(LocalError, match=r"'perhaps'.*'verify'"):
        await follow(Verifier(ids("abcdef"), cut_at=2), Writer(ids("abcdef")), choice(ask), until=3)


async def test_a_callable_that_fails_ends_the_answer_with_its_reason() -> None:
    def ask(about: Unconfirmed) -> str:
        raise KeyError("window closed")

    with pytest.raises(LocalError, match=r"KeyError.*window closed"):
        await follow(Verifier(ids("abcdef"), cut_at=2), Writer(ids("abcdef")), choice(ask), until=3)


# -- what is left ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_answer_says_which_text_is_undecided() -> None:
    verifier = Verifier(ids("abcdef"), cut_at=2)
    app = App()
    with driving(answer_of(), verifier, drafter=Writer(ids("abXYZ")), offline=choice()) as driver:
        running = asyncio.create_task(driver.run())
        while isinstance(item := await driver.pieces.get(), Piece):
            app.take(item)
            if len(app.unverified) == 3:
                assert driver.away
                assert driver.unverified_text == "XYZ"
                driver.cancel()
        await running
    assert isinstance(item, Result)
    assert (item.text, item.unverified_text, item.token_ids) == ("ab", "XYZ", ids("ab"))
    assert app.screen == "abXYZ"


async def test_held_back_text_is_not_there_twice_when_an_answer_is_cancelled() -> None:
    """The line's end may begin the stop string, so it was not shown before the device went on alone."""
    verifier, app = Verifier(ids("a\nbcdef"), cut_at=2), App()
    answer = answer_of(max_tokens=64, stop=["\n\n"])
    with driving(answer, verifier, drafter=Writer(ids("a\nXYZ")), offline=choice()) as driver:
        running = asyncio.create_task(driver.run())
        while isinstance(item := await driver.pieces.get(), Piece):
            app.take(item)
            if len(app.unverified) == 3:
                driver.cancel()
        await running
    assert isinstance(item, Result)
    assert app.screen == item.text + item.unverified_text == "a\nXYZ"


def test_what_a_client_was_told_holds_for_calls_that_say_only_that_they_draft() -> None:
    client = OfflineChoice().changed("wait", "keep", 5.0)
    assert client.config is None
    call = client.changed("draft", None)
    assert call.config is not None
    assert (call.config.on_reconnect, call.config.after_s) == ("keep", 5.0)


def test_kept_text_is_not_verified_whatever_the_verifier_is_called() -> None:
    answer = answer_of()
    answer.output.append(1)
    answer.other_fingerprints.append(f"{ALONE}draft")
    assert not answer.verified


async def test_origin_unverified_is_never_on_a_verified_piece() -> None:
    text = ids("some words that both of them write")
    app, _ = await follow(Verifier(text, cut_at=3), Writer(text), choice(), until=12)
    for piece in app.seen:
        assert piece.verified is (piece.origin is not Origin.UNVERIFIED)
        assert piece.verified or not piece.verified_text


def test_choices_are_checked_when_the_client_is_made() -> None:
    with pytest.raises(InvalidParameter, match=r"offline.*'maybe'"):
        AsyncClient("127.0.0.1:1", offline="maybe")
    with pytest.raises(InvalidParameter, match=r"on_reconnect.*'ask'"):
        AsyncClient("127.0.0.1:1", offline="draft", on_reconnect="ask")
    with pytest.raises(InvalidParameter, match="draft model"):
        AsyncClient("127.0.0.1:1", draft="ngram", offline="draft")
    with pytest.raises(InvalidParameter, match="offline_after_s"):
        AsyncClient("127.0.0.1:1", draft=ListDrafter(), offline="draft", offline_after_s=0.0)


async def test_a_ticket_does_not_outlive_the_tokens_that_it_cannot_prove() -> None:
    answer = answer_of()
    answer.output += ids("the ")
    answer.fingerprint, answer.ticket = "pf-a", Ticket(b"proof", AT + 4)
    verifier = Verifier(ids("the cat sat"), cut_at=4)
    _, result = await follow(verifier, Writer(ids("the dog")), choice("keep"), until=3, answer=answer)
    assert verifier.streams[-1].opening.ticket == b""
    assert answer.ticket is None
    assert result.text == "the dog sat"
