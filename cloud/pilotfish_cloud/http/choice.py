"""One answer of a request as the engine's commits come: its text that may be shown, and drafts from what it expects."""

from __future__ import annotations

from pilotfish_core.cloud_core import VerifyCounts
from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.prediction import Prediction
from pilotfish_core.stops import StopTextFilter
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_openai.choice import Choice, Delta, Seat


class CommittedChoice(Choice):
    """One answer."""

    def __init__(self, seat: Seat, tokenizer: Tokenizer, prediction: Prediction | None) -> None:
        super().__init__(seat, tokenizer)
        self.prediction = prediction
        self._filter = StopTextFilter(seat.params, tokenizer, eos_token_ids=tokenizer.eos_token_ids)

    def take(self, commit: Commit, counts: VerifyCounts | None) -> Delta:
        """Take in the next commit."""
        self.count(len(commit.tokens))
        self.steps += bool(commit.tokens)
        text = "".join([self._filter.push(token) for token in commit.tokens])
        if commit.finish is not None:
            text += self._filter.flush()
            self.finish = commit.finish
        if commit.finish is not None and counts is not None:
            self.predicted, self.rightly_predicted = counts.draft_tokens, counts.accepted_tokens
            self.drafted = counts.draft_tokens + counts.own_draft_tokens
            self.accepted = counts.accepted_tokens + counts.own_accepted_tokens
        return Delta(text, self.score(commit.tokens, commit.logprobs), commit.finish)

    def draft(self, commit: Commit | None) -> DraftRun | None:
        """What the expected text has for the next steps; ``commit``: the last one, None before the first."""
        if self.prediction is None:
            return None
        if commit is None:
            return self.prediction.begin()
        return None if commit.finish is not None else self.prediction.committed(commit.tokens)
