"""The SDK's front: ``AsyncClient`` and ``Client``, one heavy object each, and the streams they hand out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pilotfish.drafters import load_drafter
from pilotfish.driver import GenerationDriver
from pilotfish.generation import Generation
from pilotfish.result import Piece, Result
from pilotfish.tokenizer_cache import obtain_tokenizer
from pilotfish.transport import Transport, parse_addresses
from pilotfish_core.device_core import DeviceConfig
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import DeadlineExceeded, InvalidParameter, InvalidRequest, PilotfishError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import Tokenizer

T = TypeVar("T")
Prompt = str | Sequence[int]


class AsyncStream:
    """One answer while it comes: iterate for pieces, then ask ``result``. Leaving the iteration does not cancel."""

    def __init__(self, driver: GenerationDriver, timeout_s: float | None) -> None:
        self.generation = driver.generation
        self._driver = driver
        self._outcome: Result | PilotfishError | None = None
        self._task = asyncio.create_task(driver.run())
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            error = DeadlineExceeded(f"the answer was not complete after {timeout_s:g} s")
            self._timer = asyncio.get_running_loop().call_later(timeout_s, driver.fail, error)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        if self._outcome is None:
            item = await self._driver.pieces.get()
            if isinstance(item, Piece):
                return item
            self._outcome = item
            if self._timer is not None:
                self._timer.cancel()
        if isinstance(self._outcome, PilotfishError):
            raise self._outcome
        raise StopAsyncIteration

    async def result(self) -> Result:
        """The whole answer; waits for it. Raises what ended it otherwise."""
        async for _ in self:
            pass
        if isinstance(self._outcome, Result):
            return self._outcome
        raise PilotfishError("the stream ended without a result")

    def cancel(self) -> None:
        """End the generation; the result then has finish_reason "abort" and what was committed."""
        self._driver.cancel()

    async def aclose(self) -> None:
        """Cancel if it is still running, and wait until everything is freed."""
        if self._timer is not None:
            self._timer.cancel()
        self._driver.cancel()
        await self._task


class AsyncClient:
    """Talks to a verifier (or several replicas of one) and drafts on this machine. Belongs to one event loop.

    ``server``: address, comma-separated list or list; later ones are tried when earlier ones fail. ``draft``: an
    exported folder, "ngram", "auto" (n-gram until the verifier offers a draft model), None, or a Drafter.
    ``tokenizer``: folder or tokenizer.json; without one the drafter's is used, else the verifier's is fetched and
    cached. Heavy work happens in ``prepare``, at the latest with the first generation.
    """

    def __init__(
        self,
        server: str | list[str] | tuple[str, ...],
        *,
        draft: str | Path | Drafter | None = "auto",
        tokenizer: str | Path | Tokenizer | None = None,
        model: str = "",
        window: int = 8,
        config: DeviceConfig | None = None,
        allow_other_fingerprint: bool = False,
        root_certificates: bytes | None = None,
    ) -> None:
        if not 1 <= window <= 1024:
            raise InvalidParameter.of("window", window, "an integer in [1, 1024]")
        self._transport = Transport(parse_addresses(server), root_certificates=root_certificates)
        self._draft = draft
        self._drafter: Drafter | None = None
        self._tokenizer_source = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._model = model
        self._config = config or DeviceConfig(window=window)
        self._allow_other_fingerprint = allow_other_fingerprint
        # One thread: drafts of several generations take turns, a small model gains nothing from sharing a core.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pilotfish-draft")
        self._preparing = asyncio.Lock()
        self._streams: set[AsyncStream] = set()

    async def prepare(self) -> None:
        """Load the drafter and the tokenizer now instead of with the first generation."""
        async with self._preparing:
            if self._tokenizer is not None:
                return
            loop = asyncio.get_running_loop()
            self._drafter = await loop.run_in_executor(self._executor, _load, self._draft)
            self._tokenizer = await obtain_tokenizer(
                self._tokenizer_source, self._draft, self._transport, self._model, self._executor
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use. Raises InvalidRequest before ``prepare``."""
        if self._tokenizer is None:
            raise InvalidRequest("call prepare() (or generate something) before asking for the tokenizer")
        return self._tokenizer

    async def generate(self, prompt: Prompt, *, timeout_s: float | None = None, **params: Any) -> AsyncStream:
        """Begin an answer. ``params``: fields of SamplingParams; without ``seed`` a random one is drawn and reported.

        Raises InvalidParameter and UnsupportedParameter; what goes wrong later comes out of the stream.
        """
        sampling = SamplingParams.from_mapping(params)
        await self.prepare()
        tokens = tuple(self.tokenizer.encode(prompt)) if isinstance(prompt, str) else _token_ids(prompt)
        if not tokens:
            raise InvalidParameter.of("prompt", prompt, "at least one token")
        generation = Generation(prompt=tokens, params=sampling, model=self._model, tokenizer_hash=self.tokenizer.hash)
        return self._stream(generation, timeout_s)

    async def resume(self, generation: Generation | str | Path, *, timeout_s: float | None = None) -> AsyncStream:
        """Go on with a generation (or a saved one) from what it holds.

        Raises InvalidRequest for one that has finished.
        """
        if not isinstance(generation, Generation):
            generation = Generation.load(generation)
        if generation.finished and generation.finish is not None:
            raise InvalidRequest(
                f"the generation has finished ({generation.finish.reason}); there is nothing to resume"
            )
        await self.prepare()
        return self._stream(generation, timeout_s)

    def _stream(self, generation: Generation, timeout_s: float | None) -> AsyncStream:
        driver = GenerationDriver(
            generation,
            transport=self._transport,
            tokenizer=self.tokenizer,
            drafter=self._drafter,
            executor=self._executor,
            config=self._config,
            allow_other_fingerprint=self._allow_other_fingerprint,
        )
        stream = AsyncStream(driver, timeout_s)
        self._streams.add(stream)
        stream._task.add_done_callback(lambda _: self._streams.discard(stream))
        return stream

    async def aclose(self) -> None:
        """Cancel what runs, close channels and drafter."""
        await asyncio.gather(*(stream.aclose() for stream in list(self._streams)))
        await self._transport.close()
        self._executor.shutdown(wait=True)
        if self._drafter is not None:
            self._drafter.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


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
    def result(self) -> Result:
        """The whole answer; waits for it. Raises what ended it otherwise."""
        return self._client._call(self._stream.result())

    def cancel(self) -> None:
        """End the generation; the result then has finish_reason "abort" and what was committed."""
        self._client._loop.call_soon_threadsafe(self._stream.cancel)

    def close(self) -> None:
        """Cancel if it is still running, and wait until everything is freed."""
        self._client._call(self._stream.aclose())


class Client:
    """``AsyncClient`` for code without an event loop: one background thread runs it. Thread-safe."""

    def __init__(self, server: str | list[str] | tuple[str, ...], **options: Any) -> None:
        parse_addresses(server)  # a wrong address should be said here, not by the thread
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
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use. Raises InvalidRequest before ``prepare``."""
        return self._client.tokenizer

    def generate(self, prompt: Prompt, *, timeout_s: float | None = None, **params: Any) -> Stream:
        """Begin an answer; see AsyncClient.generate."""
        return Stream(self._call(self._client.generate(prompt, timeout_s=timeout_s, **params)), self)

    def resume(self, generation: Generation | str | Path, *, timeout_s: float | None = None) -> Stream:
        """Go on with a generation; see AsyncClient.resume."""
        return Stream(self._call(self._client.resume(generation, timeout_s=timeout_s)), self)

    def close(self) -> None:
        """Cancel what runs, close channels and drafter, end the thread."""
        if self._thread.is_alive():
            self._call(self._client.aclose())
            self._stop_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # an interrupt in the caller's thread must not leave the coroutine running
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _create(server: str | list[str] | tuple[str, ...], options: dict[str, Any]) -> AsyncClient:
    return AsyncClient(server, **options)


async def _next(stream: AsyncStream) -> Piece | None:
    with contextlib.suppress(StopAsyncIteration):
        return await stream.__anext__()
    return None


def _load(draft: str | Path | Drafter | None) -> Drafter | None:
    if isinstance(draft, Drafter):
        return draft
    return load_drafter("ngram" if draft == "auto" else draft)


def _token_ids(prompt: Sequence[int]) -> tuple[int, ...]:
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise InvalidParameter.of("prompt", token, "text, or a list of token ids")
    return tuple(prompt)
