"""The SDK's front: ``AsyncClient`` and ``Client``, one heavy object each, and the streams they hand out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import enum
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from pilotfish.chat_prompts import ChatPrompts, Message
from pilotfish.credentials import Credentials
from pilotfish.draft_thread import DraftThread
from pilotfish.driver import GenerationDriver
from pilotfish.generation import Generation
from pilotfish.local_driver import LocalDriver
from pilotfish.preparation import Preparation
from pilotfish.result import Piece, Result
from pilotfish.routes import Routes
from pilotfish.served_model import ServedModel, served_model
from pilotfish.stream import AsyncStream, Deadline
from pilotfish.transport import Transport, parse_addresses
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import Cancelled, InvalidParameter, InvalidRequest
from pilotfish_core.modes import Arm, Hint, Objective
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import SentPrompts
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.trace import ClientTrace

if TYPE_CHECKING:
    from pilotfish_openai.chat_template import ChatTemplate

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream"]

T = TypeVar("T")
Prompt = str | Sequence[int]
SIGNALS_EVERY_S: Final = 0.2
CLOSE_TIMEOUT_S: Final = 5.0  # that closing waits for a drafter that is busy


class AsyncClient:
    """Talks to a verifier (or several replicas of one) and drafts on this machine. Belongs to one event loop.

    ``server``: address, comma-separated list or list; later ones are tried when earlier ones fail. ``draft``: an
    exported folder, "ngram", "auto" (n-gram until the verifier offers a draft model), None, or a Drafter.
    ``tokenizer``: folder or tokenizer.json; without one the drafter's is used, else the verifier's is fetched and
    cached. Heavy work happens in ``prepare``, at the latest with the first generation.

    ``arm``: who drafts; "auto" lets the policy choose for the ``objective``, which a ``hint`` about the device may
    change at any time. What the policy learns of link, drafter and cloud is kept from one generation to the next.

    ``api_key`` (default: $PILOTFISH_API_KEY) is sent with each call, over TLS or to this machine only, unless
    ``insecure``. With addresses ``grpcs://``: ``ca`` are authorities to trust instead of the usual ones, ``cert`` and
    ``key`` the device's own certificate; files in PEM. ``pad``: frames in size classes, both ways, because their sizes
    tell something of the text.

    ``cloud="never"`` is a hard switch, for private text: nothing is ever sent, ``server`` may be None, and the answers
    are the draft model's own, in pieces of origin "unverified".

    ``trace``: where to write when what happened, without any text (see ``pilotfish_core.trace``).
    """

    def __init__(
        self,
        server: str | list[str] | tuple[str, ...] | None,
        *,
        draft: str | Path | Drafter | None = "auto",
        tokenizer: str | Path | Tokenizer | None = None,
        model: str = "",
        arm: str | Arm | None = None,
        objective: str | Objective | None = None,
        hint: Hint | None = None,
        cloud: str = "auto",
        window: int = 16,
        config: DeviceConfig | None = None,
        allow_other_fingerprint: bool = False,
        api_key: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        insecure: bool = False,
        pad: bool = False,
        trace: ClientTrace | None = None,
    ) -> None:
        if not 1 <= window <= 1024:
            raise InvalidParameter.of("window", window, "an integer in [1, 1024]")
        if cloud not in ("auto", "never"):
            raise InvalidParameter.of("cloud", cloud, "'auto' or 'never'")
        self._alone = cloud == "never" or arm == Arm.DEVICE_ONLY
        named = None if arm is None else _choice("arm", Arm, arm)
        if cloud == "never" and named not in (None, Arm.AUTO, Arm.DEVICE_ONLY):
            raise InvalidParameter.of("arm", str(named), "device-only, or none: with cloud='never' nothing is sent")
        drafts = isinstance(draft, Drafter) or draft not in (None, "none")
        if self._alone and not isinstance(draft, Drafter) and draft in (None, "none", "auto", "ngram"):
            raise InvalidParameter.of("draft", draft, "a draft model: without the cloud it writes the answer")
        if named is not None and named.device_drafts and not drafts:
            raise InvalidParameter.of("draft", draft, f"something to draft with, for the arm {named}")
        addresses = () if self._alone else parse_addresses(server)
        credentials = Credentials()
        if not self._alone:
            credentials = Credentials.load(api_key=api_key, ca=ca, cert=cert, key=key)
            credentials.check_addresses(addresses, insecure=insecure)
        self._transport = Transport(addresses, credentials)
        self._padded = pad
        self._trace = trace
        self._model = model
        config = config or DeviceConfig(window=window)
        self._config = dataclasses.replace(
            config,
            arm=config.arm if named is None else named,
            objective=config.objective if objective is None else _choice("objective", Objective, objective),
        )
        self._hint = hint or Hint()
        self._memory = PolicyMemory()
        self._prompts = SentPrompts()
        self._routes = Routes()
        self._allow_other_fingerprint = allow_other_fingerprint
        self._executor = DraftThread()
        self._prepared = Preparation(draft, tokenizer, model, self._executor)
        self._chat = ChatPrompts(None if self._alone else self._transport, model, [tokenizer, draft])
        self._streams: set[AsyncStream] = set()
        self._closed = False

    async def prepare(self) -> None:
        """Load the drafter and the tokenizer now instead of with the first generation.

        Raises ModelLoadError, TokenizerMismatch, and what the verifier answers.
        """
        self._check_open()
        await self._prepared.run(self._transport)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use. Raises InvalidRequest before ``prepare``."""
        if self._prepared.tokenizer is None:
            raise InvalidRequest("call prepare() (or generate something) before asking for the tokenizer")
        return self._prepared.tokenizer

    async def generate(self, prompt: Prompt, *, timeout_s: float | None = None, **params: Any) -> AsyncStream:
        """Begin an answer. ``params``: fields of SamplingParams; without ``seed`` a random one is drawn and reported.

        ``timeout_s`` counts from this call on. Raises InvalidParameter, UnsupportedParameter, and what ``prepare``
        does; what goes wrong later comes out of the stream.
        """
        deadline = Deadline.after(timeout_s)
        sampling = SamplingParams.from_mapping(params)
        await self._until(deadline, self.prepare())
        tokens = tuple(self.tokenizer.encode(prompt)) if isinstance(prompt, str) else _token_ids(prompt)
        if not tokens:
            raise InvalidParameter.of("prompt", prompt, "at least one token")
        return self._begin(tokens, sampling, deadline)

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        timeout_s: float | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> AsyncStream:
        """Begin the assistant's answer to a conversation, a list of ``{"role": ..., "content": ...}``; roles: system,
        developer, user, assistant. The target's own chat template makes the prompt, on this device.

        ``template_variables``: further ones that the template knows, such as ``enable_thinking``. Raises what
        ``generate`` does, and InvalidRequest for a model without a template or messages that it refuses.
        """
        deadline = Deadline.after(timeout_s)
        sampling = SamplingParams.from_mapping(params)
        tokens = await self._until(deadline, self._prompt_of(messages, True, template_variables))
        return self._begin(tokens, sampling, deadline)

    async def count_tokens(self, prompt: Prompt | Sequence[Message]) -> int:
        """How many tokens a prompt has for the target: text as ``generate`` takes it, or messages as ``chat`` does."""
        return len(await self._prompt_of(prompt, True))

    async def prewarm(self, prefix: Prompt | Sequence[Message]) -> None:
        """Make the first answer that begins with ``prefix`` (text, ids or messages) come sooner: load the drafter,
        connect, and let the verifier compute the prefix and keep it. Costs its prefill and one token.
        """
        tokens = await self._prompt_of(prefix, False)
        if not self._alone:
            await (await self.generate(tokens, max_tokens=1, ignore_eos=True)).result()

    async def chat_template(self) -> ChatTemplate | None:
        """The target's chat template; None where it has none. Raises what the verifier answers."""
        self._check_open()
        return await self._chat.template()

    async def describe(self) -> ServedModel:
        """What the verifier serves. Raises UnknownModel, InvalidRequest without a verifier, and what it answers."""
        self._check_open()
        if self._alone:
            raise InvalidRequest("there is no verifier to ask: cloud='never'")
        return await served_model(self._transport, self._model)

    async def _prompt_of(
        self, prompt: Prompt | Sequence[Message], answer: bool, variables: Mapping[str, Any] | None = None
    ) -> tuple[int, ...]:
        """Ids of text, ids or messages; ``answer``: the assistant is to go on behind them."""
        await self.prepare()
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt))
        if len(prompt) and not any(isinstance(part, Mapping) for part in prompt):
            return _token_ids(cast("Sequence[int]", prompt))
        return await self._chat.prompt(
            cast("Sequence[Message]", prompt), self.tokenizer, add_generation_prompt=answer, variables=variables
        )

    def _begin(self, tokens: tuple[int, ...], params: SamplingParams, deadline: Deadline | None) -> AsyncStream:
        generation = Generation(prompt=tokens, params=params, model=self._model, tokenizer_hash=self.tokenizer.hash)
        return self._stream(generation, deadline)

    async def resume(self, generation: Generation | str | Path, *, timeout_s: float | None = None) -> AsyncStream:
        """Go on with a generation (or a saved one) from what it holds.

        Raises InvalidRequest for one that has finished.
        """
        deadline = Deadline.after(timeout_s)
        if not isinstance(generation, Generation):
            generation = Generation.load(generation)
        if generation.finished and generation.finish is not None:
            raise InvalidRequest(
                f"the generation has finished ({generation.finish.reason}); there is nothing to resume"
            )
        await self._until(deadline, self.prepare())
        generation.count_attempts_from_clock()
        return self._stream(generation, deadline)

    @property
    def hint(self) -> Hint:
        """What the app has said about the device. To be set at any time: it holds for what runs and what comes."""
        return self._hint

    @hint.setter
    def hint(self, hint: Hint) -> None:
        self._hint = hint
        for stream in self._streams:
            stream._driver.hint(hint)

    async def _until(self, deadline: Deadline | None, work: Coroutine[Any, Any, T]) -> T:
        if deadline is None:
            return await work
        try:
            async with asyncio.timeout_at(deadline.at):
                return await work
        except TimeoutError:
            raise deadline.error() from None

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("the client is closed")

    def _stream(self, generation: Generation, deadline: Deadline | None) -> AsyncStream:
        self._check_open()
        driver = (
            self._local_driver(generation)
            if self._alone
            else GenerationDriver(
                generation,
                transport=self._transport,
                tokenizer=self.tokenizer,
                drafter=self._prepared.drafter,
                executor=self._executor,
                config=self._config,
                allow_other_fingerprint=self._allow_other_fingerprint,
                memory=self._memory,
                hint=self._hint,
                prompts=self._prompts,
                routes=self._routes,
                padded=self._padded,
                deadline=None if deadline is None else deadline.at,
                trace=self._trace,
            )
        )
        stream = AsyncStream(driver, deadline)
        self._streams.add(stream)
        stream._task.add_done_callback(lambda _: self._streams.discard(stream))
        return stream

    def _local_driver(self, generation: Generation) -> LocalDriver:
        drafter = self._prepared.drafter
        if drafter is None:
            raise InvalidRequest("there is no draft model to write the answer without the cloud")
        return LocalDriver(generation, tokenizer=self.tokenizer, drafter=drafter, executor=self._executor)

    async def aclose(self) -> None:
        """Cancel what runs, close channels and drafter (a Drafter that was given stays open: it is the caller's)."""
        self._closed = True
        await self._prepared.stop()
        await asyncio.gather(*(stream.aclose() for stream in list(self._streams)))
        await self._transport.close()
        if await self._executor.aclose(CLOSE_TIMEOUT_S):
            self._prepared.free()  # a model that still runs is left alone

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
    def draft_text(self) -> str:
        """What is drafted beyond the text that has come; see AsyncStream."""
        return self._stream.draft_text

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
        """Begin an answer; see AsyncClient.generate."""
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

    def resume(self, generation: Generation | str | Path, *, timeout_s: float | None = None) -> Stream:
        """Go on with a generation; see AsyncClient.resume."""
        return Stream(self._call(self._client.resume(generation, timeout_s=timeout_s)), self)

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


Choice = TypeVar("Choice", bound=enum.StrEnum)


def _choice(name: str, kind: type[Choice], value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise InvalidParameter.of(name, value, " or ".join(kind)) from None


def _token_ids(prompt: Sequence[int]) -> tuple[int, ...]:
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise InvalidParameter.of("prompt", token, "text, or a list of token ids")
    return tuple(prompt)
