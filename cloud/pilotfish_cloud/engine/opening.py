"""Turns a request to open into a sequence, or into the error that the caller made."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

from pilotfish_cloud.engine.interface import OpenRequest
from pilotfish_core.cloud_core import CloudCore, CloudLimits, VerifyCounts
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import InvalidParameter, PromptTooLong, ProtocolViolation
from pilotfish_core.scheduling import Sequence
from pilotfish_core.stops import StopChecker
from pilotfish_core.tokenizer import Tokenizer


class Opener:
    """Checks requests against the target's vocabulary and context."""

    def __init__(
        self, tokenizer: Tokenizer, limits: CloudLimits, *, max_model_len: int, totals: VerifyCounts | None = None
    ) -> None:
        self._totals = totals
        self._tokenizer = tokenizer
        self._limits = limits
        self._max_model_len = max_model_len
        self._vocabulary_size = tokenizer.vocab_size

    def open(self, request: OpenRequest, now: float) -> tuple[Sequence, Commit | None]:
        """The sequence, and the empty commit with the finish when a resumed output is complete already.

        Raises InvalidParameter (prompt, logit_bias or weight), PromptTooLong, ProtocolViolation (resumed output),
        ResumeRefused (output beyond its own end).
        """
        prompt, output, params = request.prompt, request.output, request.params
        if not prompt:
            raise InvalidParameter("the prompt is empty; expected at least one token")
        self._check_ids(prompt, "prompt")
        self._check_ids(output, "resumed output")
        for token, _bias in params.logit_bias:
            if token >= self._vocabulary_size:
                raise InvalidParameter.of("logit_bias", token, f"token ids below {self._vocabulary_size}")
        if not (request.weight > 0 and math.isfinite(request.weight)):
            raise InvalidParameter.of("weight", request.weight, "a positive number")
        room = self._max_model_len - len(prompt)
        if room < max(1, len(output)):
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens and the output {len(output)}; the target's context is "
                f"{self._max_model_len}, and one token at least must fit"
            )
        max_output = min(params.max_tokens, room)
        finish_rule = StopChecker(
            params, self._tokenizer, eos_token_ids=self._tokenizer.eos_token_ids, max_output=max_output
        )
        core = CloudCore(
            prompt_length=len(prompt),
            output=output,
            finish_rule=finish_rule,
            max_output=max_output,
            vocabulary_size=self._vocabulary_size,
            limits=self._limits,
            now=now,
            mode=request.mode,
            hint=request.hint,
            pace=request.pace,
            totals=self._totals,
        )
        finished = core.open(now)
        sequence = Sequence(
            request.key,
            [*prompt, *output],
            core,
            params,
            max_len=len(prompt) + max_output,
            cache_salt=request.cache_salt,
            tenant=request.tenant,
            weight=request.weight,
        )
        return sequence, finished

    def _check_ids(self, tokens: Seq[int], what: str) -> None:
        if tokens and not (min(tokens) >= 0 and max(tokens) < self._vocabulary_size):
            bad = next(token for token in tokens if not 0 <= token < self._vocabulary_size)
            message = f"{what} token {bad} is outside the vocabulary of {self._vocabulary_size}"
            raise InvalidParameter(message) if what == "prompt" else ProtocolViolation(message)
