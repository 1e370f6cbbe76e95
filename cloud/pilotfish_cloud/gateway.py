"""What is common to all doors (gRPC, HTTP): the way from an opening to the engine, and of its events to a stream.

Lives on one event loop; only ``listen`` is called from elsewhere, by the engine's thread. A door opens a stream, takes
its events until the last one, and closes it whatever happens::

    claim = await gateway.ask(opening, principal)
    stream = gateway.open(opening, principal, claim=claim)
    try:
        async for event in stream: ...
    finally:
        gateway.close(stream)
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pilotfish_cloud.engine.interface import CommitEvent, Engine, EngineEvent, OpenedEvent, OpenRequest
from pilotfish_cloud.logs import request_id
from pilotfish_cloud.observer import StreamObserver
from pilotfish_cloud.principal import Principal
from pilotfish_cloud.routing import Routing
from pilotfish_cloud.stream import Stream
from pilotfish_core.admission import Admission, Claim, MemoryAdmission, ResumePolicy
from pilotfish_core.errors import (
    Cancelled,
    DeadlineExceeded,
    FingerprintMismatch,
    Overloaded,
    ResumeRefused,
    TokenizerMismatch,
    Unavailable,
    UnknownModel,
)
from pilotfish_core.messages import Open
from pilotfish_core.prompts import PromptStore
from pilotfish_core.tickets import TicketLine, Tickets, generation_digest
from pilotfish_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pilotfish_cloud.tracing import Tracing

READ_WITHIN_S: Final = 60.0  # that a door may take for what is there when the engine is done


class Gateway:
    """Streams between the doors and one engine."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        served_model_name: str,
        max_unacknowledged: int,
        max_backlog_bytes: int = 256 * 1024,
        admission: Admission | None = None,
        tracing: Tracing | None = None,
        tickets: Tickets | None = None,
        resume: ResumePolicy = ResumePolicy.TRUST,
        routing: Routing | None = None,
    ) -> None:
        """``resume``: of tenants that have no policy of their own; ``tickets`` for those resumed by them."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.served_model_name = served_model_name
        self.max_unacknowledged = max_unacknowledged
        self.prompts = PromptStore()
        self.admission = admission or MemoryAdmission()
        self._tracing = tracing
        self._tickets = tickets
        self._resume = resume
        self._routing = routing
        self._max_backlog_bytes = max_backlog_bytes
        self._loop = asyncio.get_running_loop()
        self._keys = (str(number) for number in itertools.count(1))
        self._streams: dict[str, Stream] = {}
        self._generations: dict[tuple[str, bytes], Stream] = {}
        self.observer = StreamObserver()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()

    # -- engine events ----------------------------------------------------------------------------------------------

    def listen(self, events: Sequence[EngineEvent]) -> None:
        """The engine's listener; called from its thread."""
        self._loop.call_soon_threadsafe(self._dispatch, events)

    def _dispatch(self, events: Sequence[EngineEvent]) -> None:
        """Commits first: what is counted of them must not keep the next ones waiting, but for usage, which is written
        down before anybody has the tokens.
        """
        known = ((self._streams.get(event.key), event) for event in events)
        ours = [(stream, event) for stream, event in known if stream is not None]
        self.observer.decided(ours)
        plain_commits: list[tuple[Stream, EngineEvent]] = []
        for stream, event in ours:
            self._charge(stream, event)
            if stream.trace is not None:
                stream.trace.take(event)
            plain = isinstance(event, CommitEvent) and event.commit.finish is None
            if not plain:
                self.observer.event(stream, event)
            stream.take(event)
            if plain:
                plain_commits.append((stream, event))
            elif isinstance(event, CommitEvent):
                error = Unavailable(f"the end of the answer was not read within {READ_WITHIN_S:.0f} s")
                self._set_timer(stream, self._loop.time() + READ_WITHIN_S, error)
        if plain_commits:
            self._loop.call_soon(self._observe, plain_commits)

    def _observe(self, commits: list[tuple[Stream, EngineEvent]]) -> None:
        for stream, event in commits:
            self.observer.event(stream, event)

    def _charge(self, stream: Stream, event: EngineEvent) -> None:
        """The prompt was charged at admission: what of it was cached is given back, what is computed comes on top."""
        match event:
            case OpenedEvent(_, cached_tokens):
                rows = -cached_tokens
            case CommitEvent(_, commit):
                rows = len(commit.tokens)
            case _:
                return
        if stream.reservation is not None and rows:
            self.admission.charge(stream.reservation, rows, self._loop.time())

    # -- life cycle -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Generations in progress."""
        return len(self._streams)

    @property
    def draining(self) -> bool:
        """Whether new generations are refused."""
        return self._draining

    async def drain(self, timeout_s: float) -> None:
        """Refuse new generations, let running ones finish, hand back the rest with a hint to resume elsewhere."""
        self._draining = True
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._idle, self._hurry)]
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiting:
            waiter.cancel()
        for stream in self._streams.values():
            error = Unavailable("this replica is shutting down; resume elsewhere", retry_after_s=0.0)
            stream.fail(self._elsewhere(error, stream.opening, stream.principal))

    def hurry(self) -> None:
        """End a drain now."""
        self._hurry.set()

    # -- streams ----------------------------------------------------------------------------------------------------

    def recall(self, opening: Open, principal: Principal) -> Open | None:
        """``opening`` with all ids of its prompt; None when it names a prefix that is not known here."""
        if opening.prefix is None:
            return opening
        ids = self.prompts.find(principal.tenant, opening.prefix)
        return None if ids is None else dataclasses.replace(opening, prompt=(*ids, *opening.prompt), prefix=None)

    async def ask(self, opening: Open, principal: Principal, *, door: str = "grpc") -> Claim | None:
        """Before ``open``: what several replicas limit together. Raises Overloaded, Cancelled."""
        try:
            return await self.admission.ask(
                principal.tenant,
                principal.settings,
                generation=generation_digest(principal.tenant, self.served_model_name, opening),
                attempt=opening.attempt,
                rows=len(opening.prompt) + len(opening.output),
            )
        except Exception as error:
            self.observer.refused(door, principal, error)
            raise

    def open(
        self,
        opening: Open,
        principal: Principal,
        *,
        claim: Claim | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, str] | None = None,
        door: str = "grpc",
    ) -> Stream:
        """Begin, or go on with, a generation. To be closed. ``claim``: what ``ask`` gave. ``door``: the name of the way
        in, for the observer.

        ``deadline``: on the event loop's clock. ``metadata`` or headers of the call, for the caller's trace.

        Raises Unavailable while draining, UnknownModel, TokenizerMismatch, FingerprintMismatch, PromptTooLong and
        InvalidParameter for more than the tenant may ask for, ResumeRefused, Overloaded, DeadlineExceeded, and
        Cancelled for an attempt that is not newer than the one that runs.
        """
        try:
            stream = self._admit(opening, principal, deadline, door, claim)
        except Exception as error:
            self.admission.withdraw(claim)
            self._elsewhere(error, opening, principal)
            self.observer.refused(door, principal, error)
            raise
        if deadline is not None:
            self._set_timer(stream, deadline, DeadlineExceeded("the caller's deadline passed"))
        if self._tracing is not None:
            stream.trace = self._tracing.begin(_attributes(stream), metadata or {})
        self._streams[stream.key] = stream
        self._idle.clear()
        self.prompts.insert(principal.tenant, opening.prompt)
        self.observer.opened(stream)
        try:
            self.engine.open(
                OpenRequest(
                    key=stream.key,
                    prompt=opening.prompt,
                    params=opening.params,
                    output=opening.output,
                    cache_salt=principal.cache_salt,
                    tenant=principal.tenant,
                    weight=principal.settings.weight,
                    mode=opening.mode,
                    hint=opening.hint,
                    pace=opening.pace,
                )
            )
        except BaseException:
            self.close(stream)
            raise
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream, and abort its generation if it has not ended."""
        self.engine.abort(stream.key)
        del self._streams[stream.key]
        if stream._timer is not None:
            stream._timer.cancel()
        self._release(stream)
        if stream.trace is not None:
            stream.trace.end(stream._error)
        name = _name(stream)
        if self._generations.get(name) is stream:
            del self._generations[name]
        if not self._streams:
            self._idle.set()
        self.observer.closed(stream)

    def routes(self, opening: Open, principal: Principal) -> tuple[str, ...]:
        """Of the opening's whole prompt."""
        return () if self._routing is None else self._routing.of(principal.tenant, opening.prompt)

    def _elsewhere(self, error: Exception, opening: Open, principal: Principal) -> Exception:
        """The error, and where to try again if that may help: all who share a prompt are sent the same way."""
        if isinstance(error, (Overloaded, Unavailable)) and error.route is None:
            error.route = next(iter(self.routes(opening, principal)[1:]), None)
        return error

    def check_open(self) -> None:
        """Raises Unavailable while new generations are refused."""
        if self._draining:
            raise Unavailable("this replica is shutting down; resume elsewhere", retry_after_s=0.0)

    def check_model(self, model: str) -> None:
        """``model`` as a caller named it; empty: the only one. Raises UnknownModel."""
        if model not in ("", self.served_model_name):
            raise UnknownModel(
                f"this verifier does not serve model {model[:100]!r}; it serves {self.served_model_name!r}"
            )

    def _admit(
        self, opening: Open, principal: Principal, deadline: float | None, door: str, claim: Claim | None
    ) -> Stream:
        """A stream with a place of its own, in the place of an older attempt if there is one."""
        self.check_open()
        stream = Stream(
            key=next(self._keys),
            opening=opening,
            principal=principal,
            other_fingerprint=self._check(opening),
            engine=self.engine,
            max_backlog_bytes=self._max_backlog_bytes,
            door=door,
            observer=self.observer,
        )
        principal.settings.check(len(opening.prompt), opening.params)
        stream.tickets = self._check_resume(opening, principal)
        self._supersede(stream)
        try:
            stream.reservation = self.admission.reserve(
                principal.tenant,
                principal.settings,
                rows=len(opening.prompt) + len(opening.output),
                output=max(min(opening.params.max_tokens, self.engine.info.max_model_len) - len(opening.output), 1),
                now=self._loop.time(),
                deadline=deadline,
                claim=claim,
            )
        except BaseException:
            self._generations.pop(_name(stream), None)
            raise
        return stream

    def _check(self, opening: Open) -> bool:
        """Whether model, tokenizer and fingerprint fit. Returns whether the fingerprint is another, as allowed."""
        info = self.engine.info
        self.check_model(opening.model)
        if opening.tokenizer_hash != info.tokenizer_hash:
            raise TokenizerMismatch(
                f"the device's tokenizer {opening.tokenizer_hash[:12] or '(none)'} differs from that of "
                f"{self.served_model_name!r}, {info.tokenizer_hash[:12]}: a draft model must share its target's "
                "vocabulary"
            )
        differs = bool(opening.fingerprint) and opening.fingerprint != info.fingerprint
        if differs and opening.output and not opening.allow_other_fingerprint:
            raise FingerprintMismatch(
                f"the generation began under {opening.fingerprint}, this replica computes as {info.fingerprint}; "
                "its tokens might differ, and the device did not allow that"
            )
        return differs

    def _check_resume(self, opening: Open, principal: Principal) -> TicketLine | None:
        """Whether the tenant may go on with what it claims. Returns the tickets for what comes, if it needs any."""
        policy = principal.settings.resume or self._resume
        if policy is ResumePolicy.REFUSE and opening.output:
            raise ResumeRefused("this verifier does not go on with what it has not committed on the same stream")
        if policy is not ResumePolicy.TICKET or self._tickets is None:
            return None
        self._tickets.check(principal.tenant, self.served_model_name, opening)
        return self._tickets.line(principal.tenant, self.served_model_name, opening)

    def _set_timer(self, stream: Stream, when: float, error: Exception) -> None:
        """Fail it then; instead of what was set before."""
        if stream._timer is not None:
            stream._timer.cancel()
        stream._timer = self._loop.call_at(when, self._expire, stream, error)

    def _expire(self, stream: Stream, error: Exception) -> None:
        stream.fail(error)
        self.engine.abort(stream.key)

    def _release(self, stream: Stream) -> None:
        if stream.reservation is not None:
            self.admission.release(stream.reservation, self._loop.time())

    def _supersede(self, stream: Stream) -> None:
        """Let a newer attempt take the place of an older one of the same tenant's same generation."""
        older = self._generations.get(_name(stream))
        if older is not None:
            running, newer = older.opening.attempt, stream.opening.attempt
            if running >= newer:
                raise Cancelled(f"attempt {newer} is not newer than attempt {running}")
            older.fail(Cancelled(f"superseded by attempt {newer}"))
            self.engine.abort(older.key)  # at once: its writer may hang on a peer that is gone
            self._release(older)  # its place is the newer one's
        self._generations[_name(stream)] = stream


def _name(stream: Stream) -> tuple[str, bytes]:
    """Generation ids are the devices' own choice: another tenant's are none of this one's business."""
    return stream.principal.tenant, stream.opening.generation_id


def _attributes(stream: Stream) -> dict[str, str | int]:
    """Of its trace; no text, no token."""
    opening = stream.opening
    return {
        "pilotfish.request_id": request_id.get(),
        "pilotfish.tenant": stream.principal.tenant,
        "pilotfish.attempt": opening.attempt,
        "pilotfish.prompt_tokens": len(opening.prompt),
        "pilotfish.resumed_tokens": len(opening.output),
        "pilotfish.max_tokens": opening.params.max_tokens,
    }
