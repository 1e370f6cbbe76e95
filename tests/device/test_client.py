"""The clients: streams with several readers, deadlines, what is prepared once, and what is closed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pilotfish.client import AsyncClient, Client
from pilotfish.drafters import load_drafter
from pilotfish.stream import AsyncStream, Deadline
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import Commit, FinishReason
from pilotfish_core.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidParameter,
    InvalidRequest,
    ModelLoadError,
    TokenizerMismatch,
    Unavailable,
)
from pilotfish_core.messages import Opened
from tests.device.verifiers import (
    LENGTH,
    TOKENIZER,
    ListDrafter,
    Script,
    ScriptedStream,
    ScriptedTransport,
    generation,
    ids,
    opened,
)


async def slow_answer(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    start = len(stream.opening.prompt) + len(stream.opening.output)
    yield opened()
    for index, character in enumerate("abcdef"):
        await asyncio.sleep(0.01)
        yield Commit(position=start + index, tokens=ids(character), finish=LENGTH if character == "f" else None)


async def no_answer(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    yield opened()


def scripted(script: Script, **options: Any) -> AsyncClient:
    client = AsyncClient("scripted:1", **{"draft": None, "tokenizer": TOKENIZER} | options)
    client._transport = ScriptedTransport(script)
    return client


@pytest.fixture
def client() -> Iterator[Client]:
    """A blocking one."""
    with Client("scripted:1", draft=None, tokenizer=TOKENIZER) as client:
        client._client._transport = ScriptedTransport(slow_answer)
        yield client


# -- an answer that the device began alone -----------------------------------------------------------------------------


async def test_it_goes_on_with_a_verifier_where_that_is_allowed() -> None:
    answer = generation()
    answer.output += ids("abc")
    answer.decided_under("device-only:small")
    answer.fingerprint = "device-only:small"
    async with scripted(slow_answer) as client:
        with pytest.raises(FingerprintMismatch, match=r"device-only:small.*allow_other_fingerprint=True"):
            await client.resume(answer)
        with pytest.raises(FingerprintMismatch):
            await client.resume(answer, allow_other_fingerprint=False)
        result = await (await client.resume(answer, allow_other_fingerprint=True)).result()
        (stream,) = client._transport.streams  # type: ignore[attr-defined]
    assert stream.opening.allow_other_fingerprint
    assert (result.text, result.verified) == ("abcabcdef", False)


async def test_what_a_client_allows_a_call_may_forbid() -> None:
    answer = generation()
    answer.output += ids("abc")
    answer.fingerprint = "device-only:small"
    async with scripted(slow_answer, allow_other_fingerprint=True) as client:
        with pytest.raises(FingerprintMismatch):
            await client.resume(answer, allow_other_fingerprint=False)
        assert (await (await client.resume(answer)).result()).text == "abcabcdef"


# -- what contradicts itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["device-lockstep", "device-async"])
@pytest.mark.parametrize("draft", [None, "none"])
def test_an_arm_that_needs_a_drafter_is_refused_without_one(arm: str, draft: str | None) -> None:
    with pytest.raises(InvalidParameter, match=f"expected something to draft with, for the arm {arm}"):
        AsyncClient("scripted:1", draft=draft, arm=arm)


def test_an_arm_that_needs_the_cloud_is_refused_where_it_is_never_to_be_asked() -> None:
    with pytest.raises(InvalidParameter, match="arm is 'co-located'; expected device-only"):
        AsyncClient(None, draft=ListDrafter(), arm="co-located", cloud="never")


# -- several readers of one stream ---------------------------------------------------------------------------------


async def test_iterating_and_waiting_from_two_tasks() -> None:
    async with asyncio.timeout(60), scripted(slow_answer) as client:
        stream = await client.generate("ab")

        async def text() -> str:
            return "".join([piece.text async for piece in stream])

        first, second, *results = await asyncio.gather(text(), text(), stream.result(), stream.result())
        assert sorted(first + second) == list("abcdef"), "no piece is lost, none comes twice"
        assert [result.text for result in results] == ["abcdef"] * 2
        assert (await stream.result()).text == "abcdef"
        assert await text() == ""


async def test_waiting_takes_no_pieces() -> None:
    async with asyncio.timeout(60), scripted(slow_answer) as client:
        stream = await client.generate("ab")
        await stream.result()
        assert "".join([piece.text async for piece in stream]) == "abcdef"


async def test_all_readers_get_the_error() -> None:
    async def broken(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened()
        await asyncio.sleep(0.05)
        raise ModelLoadError("broken")

    async with asyncio.timeout(60), scripted(broken) as client:
        stream = await client.generate("ab")
        outcomes = await asyncio.gather(stream.result(), anext(stream), anext(stream), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["broken"] * 3


async def test_one_who_gives_up_waiting_takes_nothing_from_the_others() -> None:
    async with asyncio.timeout(60), scripted(slow_answer) as client:
        stream = await client.generate("ab")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.result(), 0.02)
        assert (await stream.result()).text == "abcdef"


def test_iterating_and_waiting_from_two_threads(client: Client) -> None:
    stream = client.generate("ab")
    with ThreadPoolExecutor(3) as threads:
        texts = [threads.submit(lambda: "".join(piece.text for piece in stream)) for _ in range(2)]
        result = threads.submit(lambda: stream.result)
        assert result.result(10).text == "abcdef"
        assert sorted("".join(text.result(10) for text in texts)) == list("abcdef")


# -- deadlines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Accepts connections and says nothing, as a stopped process does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_the_deadline_covers_the_preparation(silent_address: str) -> None:
    """Nothing is known of the tokenizer yet: it would have to be fetched."""
    async with asyncio.timeout(60), AsyncClient(silent_address, draft=None) as client:
        with pytest.raises(DeadlineExceeded, match=r"after 0\.2 s"):
            await client.generate("ab", timeout_s=0.2)
        with pytest.raises(DeadlineExceeded, match=r"after 0\.2 s"):
            await client.resume(generation(), timeout_s=0.2)


@pytest.mark.parametrize("timeout_s", [float("nan"), 0, -1, float("inf")])
async def test_a_time_that_is_none(timeout_s: float, silent_address: str) -> None:
    async with asyncio.timeout(60), AsyncClient(silent_address, draft=None) as client:
        with pytest.raises(InvalidParameter, match="a positive number"):
            await client.generate("ab", timeout_s=timeout_s)
        with pytest.raises(InvalidParameter, match="a positive number"):
            await client.resume(generation(), timeout_s=timeout_s)


async def test_preparing_uses_up_the_time_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer's deadline is the one that was set before the preparation began."""
    begun: list[Deadline | None] = []
    given: list[Deadline | None] = []

    def after(timeout_s: float | None) -> Deadline | None:
        begun.append(Deadline.after(timeout_s))
        return begun[-1]

    class Watched(AsyncStream):
        def __init__(self, driver: Any, deadline: Deadline | None) -> None:
            given.append(deadline)
            super().__init__(driver, deadline)

    async def obtain(*_: Any) -> Any:
        assert len(begun) == 1
        return TOKENIZER

    monkeypatch.setattr("pilotfish.async_client.Deadline", SimpleNamespace(after=after))
    monkeypatch.setattr("pilotfish.async_client.AsyncStream", Watched)
    monkeypatch.setattr("pilotfish.preparation.obtain_tokenizer", obtain)
    async with asyncio.timeout(60), scripted(no_answer) as client:
        with pytest.raises(DeadlineExceeded, match=r"after 0\.5 s"):
            await (await client.generate("ab", timeout_s=0.5)).result()
    assert given == begun


async def test_a_deadline_of_one_leaves_the_preparation_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    go_on = asyncio.Event()

    async def slowly(*_: Any) -> Any:
        calls.append(1)
        await go_on.wait()
        return TOKENIZER

    monkeypatch.setattr("pilotfish.preparation.obtain_tokenizer", slowly)
    async with asyncio.timeout(60), scripted(slow_answer) as client:
        patient = asyncio.create_task(client.generate("ab"))
        with pytest.raises(DeadlineExceeded):
            await client.generate("ab", timeout_s=0.05)
        go_on.set()
        assert (await (await patient).result()).text == "abcdef"
        assert calls == [1]


async def test_closing_ends_a_preparation(silent_address: str) -> None:
    async with asyncio.timeout(60):
        client = AsyncClient(silent_address, draft=None)
        waiting = asyncio.create_task(client.prepare())
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(Exception, match="closed"):
            await waiting


# -- preparation ---------------------------------------------------------------------------------------------------


async def test_a_drafter_of_another_tokenizer_is_refused() -> None:
    async with scripted(slow_answer, draft=ListDrafter(tokenizer_hash="ab" * 32)) as client:
        with pytest.raises(TokenizerMismatch, match="the drafter list was made for tokenizer abababababab"):
            await client.generate("ab")
    async with scripted(slow_answer, draft=ListDrafter(tokenizer_hash=TOKENIZER.hash)) as client:
        assert (await (await client.generate("ab")).result()).text == "abcdef"


async def test_the_drafter_is_loaded_once_though_the_tokenizer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[ListDrafter] = []

    def load(spec: object) -> Drafter:
        loads.append(ListDrafter())
        return loads[-1]

    monkeypatch.setattr("pilotfish.preparation.load_drafter", load)
    failures: list[Exception] = [Unavailable("gone")]

    async def fetch(*_: Any) -> Any:
        if failures:
            raise failures.pop()
        return TOKENIZER

    monkeypatch.setattr("pilotfish.preparation.obtain_tokenizer", fetch)
    async with scripted(slow_answer, draft="ngram") as client:
        with pytest.raises(Unavailable):
            await client.prepare()
        await client.prepare()
    assert len(loads) == 1
    assert loads[0].closed, "it is the client's own"


async def test_a_drafter_that_fails_to_close_does_not_keep_the_client_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(ListDrafter):
        def close(self) -> None:
            raise RuntimeError("no")

    monkeypatch.setattr("pilotfish.preparation.load_drafter", lambda spec: Stubborn())
    async with scripted(slow_answer, draft="ngram") as client:
        await (await client.generate("ab")).result()
    assert "the drafter list failed to close" in caplog.text


async def test_a_drafter_that_was_given_is_left_open() -> None:
    given = ListDrafter()
    async with scripted(slow_answer, draft=given) as client:
        await (await client.generate("ab")).result()
        await client.aclose()  # twice does no harm
    assert not given.closed


def test_a_draft_folder_may_be_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(ModelLoadError, match="is a Hugging Face folder"):
        load_drafter("~/model")


async def test_a_tokenizer_may_be_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.to_json())
    async with scripted(slow_answer, tokenizer="~/tokenizer.json") as client:
        await client.prepare()
        assert client.tokenizer.hash == TOKENIZER.hash


# -- the end -------------------------------------------------------------------------------------------------------


async def test_a_closed_client_says_so() -> None:
    client = scripted(slow_answer)
    await client.aclose()
    calls: list[Callable[[], Any]] = [
        client.prepare,
        lambda: client.generate("ab"),
        lambda: client.resume(generation()),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="the client is closed"):
            await call()


def test_a_closed_blocking_client_says_so(client: Client) -> None:
    done, open_ended = client.generate("ab"), client.generate("ab")
    assert done.result.text == "abcdef"
    client.close()
    client.close()
    calls: list[Callable[[], Any]] = [
        client.prepare,
        lambda: client.generate("ab"),
        lambda: client.resume(generation()),
        lambda: next(done),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="the client is closed"):
            call()
    assert done.result.text == "abcdef"
    assert open_ended.result.finish_reason in (FinishReason.ABORT, FinishReason.LENGTH)
    open_ended.cancel()
    open_ended.close()


def test_closing_leaves_no_thread_waiting() -> None:
    client = Client("scripted:1", draft=None, tokenizer=TOKENIZER)
    client._client._transport = ScriptedTransport(no_answer)
    stream = client.generate("ab")
    endings: list[BaseException | None] = []

    def read() -> None:
        try:
            while True:
                next(stream)
        except BaseException as error:
            endings.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    client.close()
    thread.join(10)
    assert len(endings) == 1
    assert isinstance(endings[0], StopIteration | InvalidRequest)
