"""From a question to its answers: opens a generation for each, follows them, and frees them whatever happens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pilotfish_cloud.engine.interface import CommitEvent, OpenedEvent
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.choice import CommittedChoice
from pilotfish_cloud.principal import Principal
from pilotfish_cloud.stream import Stream
from pilotfish_core.messages import GENERATION_ID_BYTES, Open
from pilotfish_core.modes import Mode, Pacing
from pilotfish_core.prediction import Prediction
from pilotfish_openai.answering import Answering, Deliver, Opened, Question, all_of

DOOR: Final = "http"


class EngineAnswering(Answering):
    """The answers to one question, from one caller."""

    def __init__(self, gateway: Gateway, principal: Principal, question: Question) -> None:
        """Raises UnknownModel, InvalidParameter and PromptTooLong, before any work."""
        gateway.check_model(question.model)
        info = gateway.engine.info
        question.check(info.vocabulary_size, info.max_model_len)
        self._gateway, self._principal = gateway, principal
        self._answers = [
            CommittedChoice(
                seat,
                gateway.tokenizer,
                None
                if question.expected is None
                else Prediction(question.expected, prompt_length=len(seat.prompt), window=info.max_draft_tokens),
            )
            for seat in question.seats()
        ]
        super().__init__(question, self._answers, info.fingerprint)

    async def run(self, opened: Opened, deliver: Deliver) -> None:
        """Follow all answers. What ``deliver`` has returned from counts as written, and only that is acknowledged: a
        caller who reads slowly pauses their own answers.
        """
        async with self._streams() as streams:
            await all_of([self._follow(choice, stream, opened, deliver) for choice, stream in streams])

    @asynccontextmanager
    async def _streams(self) -> AsyncIterator[list[tuple[CommittedChoice, Stream]]]:
        streams: list[tuple[CommittedChoice, Stream]] = []
        try:
            for choice in self._answers:
                opening = self._opening(choice)
                claim = await self._gateway.ask(opening, self._principal, door=DOOR)
                streams.append((choice, self._gateway.open(opening, self._principal, claim=claim, door=DOOR)))
            yield streams
        finally:
            for _, stream in streams:
                self._gateway.close(stream)

    def _opening(self, choice: CommittedChoice) -> Open:
        info = self._gateway.engine.info
        return Open(
            model=self.question.model,
            tokenizer_hash=info.tokenizer_hash,
            generation_id=secrets.token_bytes(GENERATION_ID_BYTES),
            attempt=1,
            prompt=choice.prompt,
            params=choice.params,
            mode=Mode(Pacing.PAUSED, info.cloud_draft),  # who speaks HTTP has no drafter: the cloud drafts
        )

    async def _follow(self, choice: CommittedChoice, stream: Stream, opened: Opened, deliver: Deliver) -> None:
        acknowledged = len(choice.prompt)
        every = max(1, self._gateway.max_unacknowledged // 4)
        if (run := choice.draft(None)) is not None:
            stream.push(run)
        async for event in stream:
            match event:
                case OpenedEvent(_, cached_tokens):
                    choice.cached_tokens = cached_tokens
                    await opened(choice)
                case CommitEvent(_, commit, _, counts):
                    if (run := choice.draft(commit)) is not None:
                        stream.push(run)
                    await deliver(choice, choice.take(commit, counts))
                    if commit.end >= acknowledged + every:
                        acknowledged = commit.end
                        stream.acknowledge(acknowledged)
