"""The target's tokens from a step's logits: coupled sampling (DESIGN section 3) for rows of many sequences at once.

The specification is ``pilotfish_core.sampling``. Two ways to the same tokens, chosen by where the logits are:

* CPU: the core's numpy functions. With a small vocabulary all rows together, see ``pilotfish_core.row_sampling``; with
  a large one each by itself, without a copy, making noise for the few tokens that can win.
* CUDA (or ``backend="torch"``): all rows together, see ``batch_sampler``; nothing but the tokens leaves the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch

from pilotfish_cloud.engine.batch_sampler import Outcome, sample_batch
from pilotfish_core.drafts import TokenLogprobs
from pilotfish_core.errors import InvalidParameter, NumericalFailure
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.row_sampling import SampleRow, coupled_tokens
from pilotfish_core.sampling import TokenHistory, coupled_token, token_logprobs

Backend = Literal["numpy", "torch"]
NOT_SAMPLED = -1
TOGETHER = 16_384  # the largest vocabulary whose rows cost less together, in numpy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRows:
    """The rows of one sequence in a step: a decode row, or a verify chain of 1 + len(draft) rows.

    Row j holds the logits after the committed prefix and j draft tokens; its token is the one at ``position + j``,
    and its penalties count ``draft[:j]``.
    """

    params: SamplingParams
    position: int  # of the first row's token (index in prompt + output)
    draft: Sequence[int] = ()
    seed: int | None = None  # None: that of the parameters; sub-seeds of n > 1 differ
    history: TokenHistory | None = None  # up to the first row; needed with penalties; moved, and put back
    banned: Sequence[int] = ()  # ids that may not come: stop ids below min_tokens
    banned_rows: int = 0  # how many rows, from the first, ``banned`` holds for

    @property
    def count(self) -> int:
        """Rows it takes."""
        return 1 + len(self.draft)


@dataclasses.dataclass(slots=True)
class SampledRows:
    """The target's tokens of one sequence, row by row.

    With ``error`` set the rows before the failing one are valid and the rest are missing. After the first row that
    differs from the draft, tokens have no meaning; some are NOT_SAMPLED when the sampler was told to stop there.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # when the parameters ask for them
    error: NumericalFailure | None = None


class Sampler:
    """Samples rows of logits. Stateless but for its settings; safe from any thread.

    ``vocab_size`` is the tokenizer's; columns from there on are padding.
    """

    def __init__(self, vocab_size: int, *, backend: Backend | None = None) -> None:
        if vocab_size < 1:
            raise InvalidParameter.of("vocab_size", vocab_size, "a positive integer")
        self.vocab_size = vocab_size
        self.backend = backend

    @torch.inference_mode()
    def sample(
        self, logits: torch.Tensor, sequences: Sequence[SequenceRows], *, stop_at_mismatch: bool = False
    ) -> list[SampledRows]:
        """One result per sequence. ``logits`` is ``[rows, padded vocabulary]``, sequences' rows in order.

        A row's result depends on that row alone, bit for bit. A row that cannot be sampled (NaN, +inf, all masked)
        fails its own sequence only: see ``SampledRows.error``. ``stop_at_mismatch`` leaves rows after the first
        rejected draft token unsampled where that saves time. Raises ValueError when shapes do not fit.
        """
        rows = sum(sequence.count for sequence in sequences)
        if logits.ndim != 2 or logits.shape[0] != rows or logits.shape[1] < self.vocab_size:
            raise ValueError(f"logits {tuple(logits.shape)} for {rows} rows of at least {self.vocab_size}")
        for sequence in sequences:
            if sequence.params.has_penalties and sequence.history is None:
                raise ValueError("a sequence with penalties needs its history")
        if (self.backend or ("numpy" if logits.device.type == "cpu" else "torch")) == "torch":
            return _by_sequence(sequences, sample_batch(logits[:, : self.vocab_size], self._rows_of(sequences)))
        if self.vocab_size <= TOGETHER:
            return _by_sequence(sequences, self._sample_together(logits, self._rows_of(sequences)))
        results, start = [], 0
        for sequence in sequences:
            results.append(self._sample_one(logits[start : start + sequence.count], sequence, stop_at_mismatch))
            start += sequence.count
        return results

    def _sample_one(self, logits: torch.Tensor, sequence: SequenceRows, stop_at_mismatch: bool) -> SampledRows:
        params, history = sequence.params, sequence.history
        result = SampledRows([], None if params.logprobs is None else [])
        held = history.length if history is not None else 0
        try:
            for j in range(sequence.count):
                # Rows of a narrower type are widened to float32, which is exact.
                row = logits[j] if logits.dtype in (torch.float32, torch.float64) else logits[j].float()
                values = row.cpu().numpy()
                token = coupled_token(
                    values,
                    params,
                    sequence.position + j,
                    seed=sequence.seed,
                    history=history,
                    banned=sequence.banned if j < sequence.banned_rows else (),
                    vocab_size=self.vocab_size,
                )
                result.token_ids.append(token)
                if result.logprobs is not None:
                    chosen, top = token_logprobs(values, [token], params.logprobs or 0, vocab_size=self.vocab_size)
                    result.logprobs.append(TokenLogprobs(chosen[0], tuple(top)))
                if j == len(sequence.draft):
                    break
                if stop_at_mismatch and token != sequence.draft[j]:
                    result.token_ids += [NOT_SAMPLED] * (len(sequence.draft) - j)
                    break
                if history is not None and params.has_penalties:
                    history.push(sequence.draft[j])
        except NumericalFailure as error:
            result.error = error
        finally:
            if history is not None:
                history.rewind(held)
        return result

    def _sample_together(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[Outcome]:
        # Rows of a narrower type are widened to float32, which is exact.
        wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        values = wide[:, : self.vocab_size].cpu().numpy()
        outcomes: list[Outcome] = []
        for row, found, token in zip(rows, values, coupled_tokens(values, rows), strict=True):
            if isinstance(token, NumericalFailure):
                outcomes.append(token)
                continue
            logprobs = None
            if row.params.logprobs is not None:
                chosen, top = token_logprobs(found, [token], row.params.logprobs)
                logprobs = TokenLogprobs(chosen[0], tuple(top))
            outcomes.append((token, logprobs))
        return outcomes

    def _rows_of(self, sequences: Sequence[SequenceRows]) -> list[SampleRow]:
        return [row for sequence in sequences for row in self._sample_rows(sequence)]

    def _sample_rows(self, sequence: SequenceRows) -> list[SampleRow]:
        params, history = sequence.params, sequence.history
        seed = params.seed if sequence.seed is None else sequence.seed
        held = history.length if history is not None else 0
        rows = []
        for j in range(sequence.count):
            seen = None
            if history is not None and params.has_penalties:
                seen = history.seen(self.vocab_size)
                if j < len(sequence.draft):
                    history.push(sequence.draft[j])
            banned = sequence.banned if j < sequence.banned_rows else ()
            rows.append(SampleRow(params, seed, sequence.position + j, seen, banned))
        if history is not None:
            history.rewind(held)
        return rows


def _by_sequence(sequences: Sequence[SequenceRows], outcomes: Sequence[Outcome]) -> list[SampledRows]:
    """Outcomes of all rows, in order, as one result for each sequence."""
    each, results = iter(outcomes), []
    for sequence in sequences:
        result = SampledRows([], None if sequence.params.logprobs is None else [])
        for outcome in [next(each) for _ in range(sequence.count)]:
            if isinstance(outcome, NumericalFailure):
                result.error = outcome
                break
            token, logprobs = outcome
            result.token_ids.append(token)
            if result.logprobs is not None and logprobs is not None:
                result.logprobs.append(logprobs)
        results.append(result)
    return results
