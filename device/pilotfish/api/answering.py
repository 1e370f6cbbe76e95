"""From a question to its answers: a generation of the client for each, given up when nobody wants it any more."""

from __future__ import annotations

import dataclasses
from typing import Any

from pilotfish.client import AsyncClient
from pilotfish.result import Metrics, Piece, Result
from pilotfish.served_model import ServedModel
from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.errors import Unavailable
from pilotfish_openai.answering import Answering, Deliver, Opened, Question, all_of
from pilotfish_openai.choice import Choice, Delta


class HybridChoice(Choice):
    """One answer, as the client's pieces come."""

    result: Metrics | None = None

    def take(self, piece: Piece, *, unverified: bool) -> Delta | None:
        """The next piece. Unverified text, which could not be taken back, is held until the target has decided it,
        unless the request asks for it (``unverified``): then it stands as it is.
        """
        if not piece.verified:
            if not unverified:
                return None
            self.count(len(piece.token_ids))
            return Delta(piece.text, verified=False)
        self.count(len(piece.token_ids))
        return Delta(piece.verified_text, self.score(piece.token_ids, piece.logprobs))

    def end(self, result: Result) -> Delta:
        """The answer is whole."""
        self.result = metrics = result.metrics
        self.steps, self.cached_tokens = metrics.steps, metrics.cached_tokens
        self.drafted, self.accepted = metrics.sent_draft_tokens, metrics.accepted_draft_tokens
        self.finish = Finish(result.finish_reason, result.stop)
        return Delta("", (), self.finish)


class ClientAnswering(Answering):
    """The answers to one question."""

    def __init__(self, client: AsyncClient, served: ServedModel, question: Question) -> None:
        """Raises InvalidParameter and PromptTooLong, before any work."""
        question.check(served.vocabulary_size, served.max_model_len)
        self._client = client
        self._answers = [HybridChoice(seat, client.tokenizer) for seat in question.seats()]
        super().__init__(question, self._answers, served.fingerprint)

    async def run(self, opened: Opened, deliver: Deliver) -> None:
        """Follow all answers to their ends."""
        await all_of([self._follow(choice, opened, deliver) for choice in self._answers])

    async def _follow(self, choice: HybridChoice, opened: Opened, deliver: Deliver) -> None:
        unverified = self.question.unverified
        alone: dict[str, Any] = {"offline": "draft", "on_reconnect": "keep"} if unverified else {}
        stream = await self._client.generate(choice.prompt, **alone, **dataclasses.asdict(choice.params))
        try:
            begun = False
            async for piece in stream:
                delta = choice.take(piece, unverified=unverified)
                if delta is None:
                    continue
                if not begun:
                    begun, self.fingerprint = True, stream.generation.fingerprint or self.fingerprint
                    await opened(choice)
                await deliver(choice, delta)
            result = await stream.result()
            if result.finish_reason is FinishReason.ABORT:  # by nobody who asked here
                raise Unavailable("this endpoint is shutting down")
            if not begun:
                await opened(choice)
            await deliver(choice, dataclasses.replace(choice.end(result), verified=result.verified))
        finally:
            await stream.aclose()

    def metrics(self) -> dict[str, Any]:
        """On top of what every door says: what the device made of its link. Sums over the answers."""
        known = [choice.result for choice in self._answers if choice.result is not None]
        names = ["recovered_tokens", "bonus_tokens", "cloud_tokens", "reconnects", "bytes_up", "bytes_down"]
        names += ["unverified_tokens", "confirmed_tokens", "withdrawn_tokens", "kept_tokens"]
        sums = {name: sum(getattr(metrics, name) for metrics in known) for name in names}
        arms = {str(metrics.policy.get("arm")): None for metrics in known}
        return super().metrics() | sums | {"drafter": known[0].drafter if known else None, "arms": list(arms)}
