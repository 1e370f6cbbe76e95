"""``Client``: ``AsyncClient`` for code without an event loop, and the streams that it hands out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pilotfish.async_client import AsyncClient
from pilotfish.chat_prompts import Message
from pilotfish.client_choices import Prompt
from pilotfish.generation import Generation
from pilotfish.result import Piece, Result
from pilotfish.served_model import ServedModel
from pilotfish.stream import AsyncStream
from pilotfish_core.errors import Cancelled, InvalidRequest
from pilotfish_core.modes import Hint
from pilotfish_core.tokenizer import Tokenizer

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream"]

T = TypeVar("T")
SIGNALS_EVERY_S: Final = 0.2


class Stream:
    """One answer while it comes, for code without an event loop."""

    def __init__(self, stream: AsyncStream, client: Client) -> None:
        self.generation = stream.generation
        self._stream = stream
        self._client = client

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        piece = self._client._call(_next(self._stream))
        if piece is None:
            raise StopIteration
        return piece

    @property
    def draft_text(self) -> str:
        """What is drafted beyond the text that has come; see AsyncStream."""
        return self._stream.draft_text

    @property
    def unverified_text(self) -> str:
        """What was shown while the link was away and is not decided yet; see AsyncStream."""
        return self._stream.unverified_text

    @property
    def offline(self) -> bool:
        """Whether the device goes on alone at the moment."""
        return self._stream.offline

    @property
    def policy(self) -> Mapping[str, Any]:
        """The numbers behind who drafts at the moment."""
        return self._stream.policy

    def watch(self, seen: Callable[[Piece | None], None]) -> Result:
        """Call ``seen``, in the client's thread, with each piece as it comes and now and then with None; see
        AsyncStream.
        """
        return self._client._call(self._stream.watch(seen))

    @property
    def result(self) -> Result:
        """The whole answer; waits for it. Raises what ended it otherwise."""
        if self._stream.ended:  # then it can be had after the client was closed, too
            return self._stream.known_result()
        return self._client._call(self._stream.result())

    def cancel(self) -> None:
        """End the generation; the result then has finish_reason "abort" and what was committed."""
        self._client._post(self._stream.cancel)

    def close(self) -> None:
        """Cancel if it is still running, and wait until everything is freed."""
        if not self._client.closed:  # which has closed its streams
            self._client._call(self._stream.aclose())


class Client:
    """``AsyncClient`` for code without an event loop: one background thread runs it. Thread-safe."""

    def __init__(self, server: str | list[str] | tuple[str, ...] | None, **options: Any) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pilotfish-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._call(_create(server, options))
        except BaseException:
            self._stop_loop()
            raise

    def prepare(self) -> None:
        """Load the drafter and the tokenizer now instead of with the first generation."""
        self._call(self._client.prepare())

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use. Raises InvalidRequest before ``prepare``."""
        return self._client.tokenizer

    @property
    def hint(self) -> Hint:
        """What the app has said about the device; see AsyncClient."""
        return self._client.hint

    @hint.setter
    def hint(self, hint: Hint) -> None:
        self._post(lambda: setattr(self._client, "hint", hint))

    def generate(self, prompt: Prompt, *, timeout_s: float | None = None, **params: Any) -> Stream:
        """Begin an answer; see AsyncClient.generate, also for ``offline`` and ``on_reconnect``."""
        return Stream(self._call(self._client.generate(prompt, timeout_s=timeout_s, **params)), self)

    def chat(self, messages: Sequence[Message], *, timeout_s: float | None = None, **params: Any) -> Stream:
        """Begin the assistant's answer to a conversation; see AsyncClient.chat."""
        return Stream(self._call(self._client.chat(messages, timeout_s=timeout_s, **params)), self)

    def count_tokens(self, prompt: Prompt | Sequence[Message]) -> int:
        """How many tokens a prompt, or a conversation, has; see AsyncClient."""
        return self._call(self._client.count_tokens(prompt))

    def prewarm(self, prefix: Prompt | Sequence[Message]) -> None:
        """Make the first answer that begins with ``prefix`` come sooner; see AsyncClient."""
        self._call(self._client.prewarm(prefix))

    def describe(self) -> ServedModel:
        """What the verifier serves."""
        return self._call(self._client.describe())

    def resume(self, generation: Generation | str | Path, *, timeout_s: float | None = None, **options: Any) -> Stream:
        """Go on with a generation; see AsyncClient.resume."""
        return Stream(self._call(self._client.resume(generation, timeout_s=timeout_s, **options)), self)

    def close(self) -> None:
        """Cancel what runs, close channels and drafter, end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True  # from here on nothing new gets onto the loop, so that nobody is left waiting for it
        try:
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        finally:
            self._stop_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._closed:
                coroutine.close()
                raise InvalidRequest("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            while not future.done():  # a signal that came to another thread is only noticed when this one wakes
                concurrent.futures.wait([future], timeout=SIGNALS_EVERY_S)
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client was closed") from None
        except BaseException:  # an interrupt in the caller's thread must not leave the coroutine running
            future.cancel()
            raise

    def _post(self, action: Callable[[], None]) -> None:
        """Do it on the loop, without waiting; nothing is left to do once the client is closed."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(action)

    def _stop_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _create(server: str | list[str] | tuple[str, ...] | None, options: dict[str, Any]) -> AsyncClient:
    return AsyncClient(server, **options)


async def _cancel_others() -> None:
    """End what other threads still wait for."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(stream: AsyncStream) -> Piece | None:
    with contextlib.suppress(StopAsyncIteration):
        return await stream.__anext__()
    return None
