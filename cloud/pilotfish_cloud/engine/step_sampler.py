"""Between a step's logits and the scheduler: which parameters, history and bans hold for which rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from typing import Final

from torch import Tensor

from pilotfish_cloud.engine.model_runner import StepLogits
from pilotfish_cloud.engine.sampler import Sampler, SequenceRows
from pilotfish_core.errors import EngineFailure, NumericalFailure, PilotfishError
from pilotfish_core.sampling import TokenHistory
from pilotfish_core.scheduling import Outcome, Sampled, ScheduledRows, Sequence
from pilotfish_core.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

SAMPLER_VERSION: Final = 1  # to be raised with any change of pilotfish_core.sampling that may change a token


class StepSampler:
    """Samples the yielding rows of a step. Keeps the token history of sequences with penalties.

    Not thread-safe: one worker thread owns it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocab_size = tokenizer.vocab_size
        self._sampler = Sampler(self._vocab_size)
        self._eos = tuple(token for token in tokenizer.eos_token_ids if token < self._vocab_size)
        self._histories: dict[str, TokenHistory] = {}

    @staticmethod
    def facts() -> dict[str, object]:
        """What of sampling belongs into the fingerprint."""
        return {"sampler": SAMPLER_VERSION}

    def opened(self, sequence: Sequence) -> None:
        """A sequence joins the engine."""
        if sequence.params.has_penalties:
            prompt, output = sequence.tokens[: sequence.prompt_len], sequence.tokens[sequence.prompt_len :]
            self._histories[sequence.key] = TokenHistory(prompt, output)

    def committed(self, key: str, tokens: Seq[int]) -> None:
        """Tokens were committed."""
        history = self._histories.get(key)
        if history is not None:
            history.extend(tokens)

    def ended(self, key: str) -> None:
        """A sequence left the engine."""
        self._histories.pop(key, None)

    def sample(self, scheduled: Seq[ScheduledRows], computed: StepLogits) -> dict[str, Outcome]:
        """Tokens, or the failure, of each entry that yields or is broken. A failure touches its own entry only."""
        outcomes: dict[str, Outcome] = {}
        entries: list[tuple[ScheduledRows, int]] = []  # with the first of its rows of logits
        first = 0
        for entry in scheduled:
            if entry.sequence.key in computed.broken:
                failure = NumericalFailure("the target computed something that is not a number")
                outcomes[entry.sequence.key] = failure
            elif entry.yields:
                entries.append((entry, first))
            first += entry.yields
        whole = len(entries) == sum(1 for entry in scheduled if entry.yields)
        try:
            rows = [index for entry, first in entries for index in range(first, first + entry.yields)]
            outcomes |= self._sample(
                computed.logits if whole else computed.logits[rows], [entry for entry, _ in entries]
            )
        except Exception:
            # Whichever of them it was, it fails alone.
            for entry, first in entries:
                key = entry.sequence.key
                try:
                    outcomes |= self._sample(computed.logits[first : first + entry.yields], [entry])
                except PilotfishError as error:
                    outcomes[key] = error
                except Exception as error:
                    _log.exception("sampling failed")
                    outcomes[key] = EngineFailure("the verifier could not choose a token", private=repr(error))
        return outcomes

    def _sample(self, logits: Tensor, entries: Seq[ScheduledRows]) -> dict[str, Outcome]:
        results = self._sampler.sample(logits, [self._rows(entry) for entry in entries], stop_at_mismatch=True)
        return {
            entry.sequence.key: result.error or Sampled(result.token_ids, result.logprobs)
            for entry, result in zip(entries, results, strict=True)
        }

    def _rows(self, entry: ScheduledRows) -> SequenceRows:
        sequence = entry.sequence
        params = sequence.params
        # An end token may come as output token number min_tokens (from one) at the earliest.
        banned_rows = max(params.min_tokens - 1 - (sequence.committed_len - sequence.prompt_len), 0)
        banned: tuple[int, ...] = ()
        if banned_rows:
            banned = tuple(token for token in params.stop_token_ids if token < self._vocab_size)
            banned += () if params.ignore_eos else self._eos
        return SequenceRows(
            params=params,
            position=sequence.committed_len,
            draft=entry.draft,
            history=self._histories.get(sequence.key),
            banned=banned,
            banned_rows=banned_rows,
        )
