"""``AsyncClient``: the SDK's one heavy object, with channels and a drafter, for code with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from pilotfish.addresses import parse_addresses
from pilotfish.attempts import ALLOWING, Calling
from pilotfish.auto_draft import AutoDraft
from pilotfish.chat_prompts import ChatPrompts, Message
from pilotfish.client_choices import Prompt, checked_bytes, chosen_arm, chosen_config, token_ids
from pilotfish.credentials import Credentials
from pilotfish.draft_thread import DraftThread
from pilotfish.driver import GenerationDriver
from pilotfish.end_tokens import EndTokens
from pilotfish.generation import Generation
from pilotfish.local_driver import LocalDriver
from pilotfish.offline import OfflineChoice, WhenBack
from pilotfish.preparation import Preparation
from pilotfish.routes import Routes
from pilotfish.served_model import ServedModel, served_model
from pilotfish.stream import AsyncStream, Deadline
from pilotfish.transport import Transport
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import FingerprintMismatch, InvalidParameter, InvalidRequest
from pilotfish_core.modes import Arm, Hint, Objective
from pilotfish_core.ngram import NgramDrafter
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import SentPrompts
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.trace import ClientTrace

if TYPE_CHECKING:
    from pilotfish.draft_download import DownloadProgress
    from pilotfish_openai.chat_template import ChatTemplate

T = TypeVar("T")
CLOSE_TIMEOUT_S: Final = 5.0  # that closing waits for a drafter that is busy


class AsyncClient:
    """Talks to a verifier (or several replicas of one) and drafts on this machine. Belongs to one event loop.

    ``server``: address, comma-separated list or list; later ones are tried when earlier ones fail. ``draft``: an
    exported folder, "ngram", "auto" (what the verifier offers; n-gram where it offers nothing, and until it is
    fetched), None, or a Drafter. ``on_download`` is told how that goes. The drafts that are fetched take at most
    ``draft_cache_bytes`` (4 GiB) on this device; what was used the longest ago goes first.
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

    ``offline="draft"``: when the link has been silent for ``offline_after_s``, in mid-answer or before, the draft model
    goes on alone, in pieces that are not ``verified``, until the link is back. Then ``on_reconnect``: "verify" (what
    agrees with the target stays, what differs is replaced through a ``Revised`` piece), "keep" (it stands, and the
    target goes on behind it), or a callable that is given an ``Unconfirmed`` and answers one of the two. With "wait"
    nothing is shown meanwhile, and tries to reconnect are limited.

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
        offline: str = "wait",
        on_reconnect: WhenBack = "verify",
        offline_after_s: float | None = None,
        window: int = 16,
        config: DeviceConfig | None = None,
        allow_other_fingerprint: bool = False,
        api_key: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        insecure: bool = False,
        pad: bool = False,
        on_download: Callable[[DownloadProgress], None] | None = None,
        draft_cache_bytes: int | None = None,
        trace: ClientTrace | None = None,
    ) -> None:
        self._alone = cloud == "never" or arm == Arm.DEVICE_ONLY
        named = chosen_arm(arm, cloud=cloud, draft=draft)
        self._offline = OfflineChoice().changed(offline, on_reconnect, offline_after_s)
        self._offline.check(draft)
        addresses = () if self._alone else parse_addresses(server)
        credentials = Credentials()
        if not self._alone:
            credentials = Credentials.load(api_key=api_key, ca=ca, cert=cert, key=key)
            credentials.check_addresses(addresses, insecure=insecure)
        self._transport = Transport(addresses, credentials)
        self._padded = pad
        self._trace = trace
        self._model = model
        self._config = chosen_config(config, window=window, arm=named, objective=objective)
        self._draft = draft
        self._hint = hint or Hint()
        self._memory = PolicyMemory()
        self._prompts = SentPrompts()
        self._routes = Routes()
        self._allow_other_fingerprint = allow_other_fingerprint
        self._executor = DraftThread()
        auto = None
        if draft == "auto" and not self._alone and not self._hint.metered_network:
            auto = AutoDraft(
                self._transport,
                credentials,
                model,
                insecure=insecure,
                report=on_download,
                cache_bytes=checked_bytes("draft_cache_bytes", draft_cache_bytes),
            )
        self._prepared = Preparation(draft, tokenizer, model, self._executor, auto)
        self._chat = ChatPrompts(None if self._alone else self._transport, model, [tokenizer, draft])
        self._end_tokens: EndTokens | None = None
        self._streams: set[AsyncStream] = set()
        self._closed = False

    async def prepare(self) -> None:
        """Load the drafter and the tokenizer now instead of with the first generation, and wait for a draft model that
        is being fetched: without this call prompt lookup drafts until it is there.

        Raises ModelLoadError, TokenizerMismatch, and what the verifier answers.
        """
        await self._prepare()
        await self._prepared.complete()

    async def _prepare(self) -> None:
        self._check_open()
        await self._prepared.run(self._transport)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use. Raises InvalidRequest before ``prepare``."""
        if self._prepared.tokenizer is None:
            raise InvalidRequest("call prepare() (or generate something) before asking for the tokenizer")
        return self._prepared.tokenizer

    async def generate(
        self,
        prompt: Prompt,
        *,
        timeout_s: float | None = None,
        offline: str | None = None,
        on_reconnect: WhenBack | None = None,
        **params: Any,
    ) -> AsyncStream:
        """Begin an answer. ``params``: fields of SamplingParams; without ``seed`` a random one is drawn and reported.

        ``timeout_s`` counts from this call on. ``offline``, ``on_reconnect``: other than the client's. Raises
        InvalidParameter, UnsupportedParameter, and what ``prepare`` does; what goes wrong later comes out of
        the stream.
        """
        deadline = Deadline.after(timeout_s)
        sampling = SamplingParams.from_mapping(params)
        alone = self._offline_of(offline, on_reconnect)
        await self._until(deadline, self._prepare())
        tokens = tuple(self.tokenizer.encode(prompt)) if isinstance(prompt, str) else token_ids(prompt)
        if not tokens:
            raise InvalidParameter.of("prompt", prompt, "at least one token")
        return self._begin(tokens, sampling, deadline, alone)

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        timeout_s: float | None = None,
        offline: str | None = None,
        on_reconnect: WhenBack | None = None,
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
        alone = self._offline_of(offline, on_reconnect)
        tokens = await self._until(deadline, self._prompt_of(messages, True, template_variables))
        return self._begin(tokens, sampling, deadline, alone)

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
        await self._prepare()
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt))
        if len(prompt) and not any(isinstance(part, Mapping) for part in prompt):
            return token_ids(cast("Sequence[int]", prompt))
        return await self._chat.prompt(
            cast("Sequence[Message]", prompt), self.tokenizer, add_generation_prompt=answer, variables=variables
        )

    def _offline_of(self, offline: str | None, on_reconnect: WhenBack | None) -> OfflineChoice:
        choice = self._offline.changed(offline, on_reconnect)
        choice.check(self._draft)
        return choice

    def _begin(
        self, tokens: tuple[int, ...], params: SamplingParams, deadline: Deadline | None, offline: OfflineChoice
    ) -> AsyncStream:
        generation = Generation(prompt=tokens, params=params, model=self._model, tokenizer_hash=self.tokenizer.hash)
        return self._stream(generation, deadline, offline, self._allow_other_fingerprint)

    async def resume(
        self,
        generation: Generation | str | Path,
        *,
        timeout_s: float | None = None,
        offline: str | None = None,
        on_reconnect: WhenBack | None = None,
        allow_other_fingerprint: bool | None = None,
    ) -> AsyncStream:
        """Go on with a generation (or a saved one) from what it holds. With ``offline="draft"`` the first piece is
        what its app was shown unverified, if anything, and that is then confirmed or revised as ever.

        ``allow_other_fingerprint``: other than the client's; an answer that the device began alone (``cloud="never"``,
        or kept offline) has none that a verifier could have. Raises InvalidRequest for one that has finished, and
        FingerprintMismatch for one that the device began alone, where that is not allowed.
        """
        allowed = self._allow_other_fingerprint if allow_other_fingerprint is None else allow_other_fingerprint
        deadline = Deadline.after(timeout_s)
        alone = self._offline_of(offline, on_reconnect)
        if not isinstance(generation, Generation):
            generation = Generation.load(generation)
        if generation.finished and generation.finish is not None:
            raise InvalidRequest(
                f"the generation has finished ({generation.finish.reason}); there is nothing to resume"
            )
        if generation.own and not (allowed or self._alone):
            raise FingerprintMismatch(
                f"the answer was begun by {generation.fingerprint}, without a verifier, and no verifier writes as that "
                f"does; {ALLOWING}"
            )
        if alone.config is None:
            generation.shown = None  # nothing unverified is asked for
        await self._until(deadline, self._prepare())
        generation.count_attempts_from_clock()
        return self._stream(generation, deadline, alone, allowed)

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

    def _stream(
        self, generation: Generation, deadline: Deadline | None, offline: OfflineChoice, allow_other_fingerprint: bool
    ) -> AsyncStream:
        self._check_open()
        if isinstance(self._prepared.drafter, NgramDrafter | None):
            offline = OfflineChoice()  # "auto" found no model: prompt lookup copies, it does not write
        driver = (
            self._local_driver(generation)
            if self._alone
            else GenerationDriver(
                generation,
                calling=Calling(
                    transport=self._transport,
                    prompts=self._prompts,
                    routes=self._routes,
                    allow_other_fingerprint=allow_other_fingerprint,
                    padded=self._padded,
                    deadline=None if deadline is None else deadline.at,
                ),
                tokenizer=self.tokenizer,
                drafter=self._prepared.drafter,
                executor=self._executor,
                config=self._config,
                memory=self._memory,
                hint=self._hint,
                offline=offline,
                end_tokens=self._ends(offline),
                trace=self._trace,
            )
        )
        stream = AsyncStream(driver, deadline)
        self._streams.add(stream)
        stream._task.add_done_callback(lambda _: self._streams.discard(stream))
        return stream

    def _ends(self, offline: OfflineChoice) -> EndTokens | None:
        """The verifier's, where the device may have to write without it."""
        if offline.config is None:
            return None
        if self._end_tokens is None:
            self._end_tokens = EndTokens(self._transport, self._model, self.tokenizer.hash)
        self._end_tokens.learn()
        return self._end_tokens

    def _local_driver(self, generation: Generation) -> LocalDriver:
        drafter = self._prepared.drafter
        if drafter is None:
            raise InvalidRequest("there is no draft model to write the answer without the cloud")
        return LocalDriver(generation, tokenizer=self.tokenizer, drafter=drafter, executor=self._executor)

    async def aclose(self) -> None:
        """Cancel what runs, close channels and drafter (a Drafter that was given stays open: it is the caller's)."""
        self._closed = True
        await self._close_streams()  # first: what is being prepared may take a while to stop
        await self._prepared.stop()
        if self._end_tokens is not None:
            await self._end_tokens.stop()
        await self._close_streams()
        await self._transport.close()
        if await self._executor.aclose(CLOSE_TIMEOUT_S):
            self._prepared.free()  # a model that still runs is left alone

    async def _close_streams(self) -> None:
        await asyncio.gather(*(stream.aclose() for stream in list(self._streams)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
