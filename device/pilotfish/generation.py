"""One answer, held by the device: prompt, parameters, seed and committed tokens. Everything a resume needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.errors import FileFormatError, InvalidParameter, PilotfishError
from pilotfish_core.messages import GENERATION_ID_BYTES
from pilotfish_core.parameters import SamplingParams

FORMAT: Final = "pilotfish-generation"
FORMAT_VERSION: Final = 1

# Attempts of a resumed generation begin at the quarter seconds since 2025, which are above those of a run that crashed
# without saving unless that one was admitted more than four times a second until its end. The wire's 32 bits hold them
# until 2059; a clock beyond that only counts up.
ATTEMPTS_BEGIN_S: Final = 1_735_689_600
ATTEMPTS_PER_S: Final = 4
MAX_CLOCK_ATTEMPT: Final = 2**32 - 2**16


@dataclasses.dataclass(slots=True, kw_only=True)
class Generation:
    """State of one answer. ``output`` only grows.

    ``fingerprint`` is the numerics that decided its first token, ``other_fingerprints`` are those under which it went
    on where the device allowed that: such an answer is ``mixed``, no replica alone would have to write it.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    model: str = ""
    tokenizer_hash: str = ""
    id: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(GENERATION_ID_BYTES))
    attempt: int = 0
    output: list[int] = dataclasses.field(default_factory=list)
    fingerprint: str = ""
    other_fingerprints: list[str] = dataclasses.field(default_factory=list)
    finish: Finish | None = None

    @property
    def finished(self) -> bool:
        """Whether the cloud has ended it (a cancelled one can be resumed)."""
        return self.finish is not None and self.finish.reason is not FinishReason.ABORT

    @property
    def mixed(self) -> bool:
        """Whether its tokens were decided under more than one fingerprint."""
        return bool(self.other_fingerprints)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """All that decided tokens of it, the first one first."""
        return (self.fingerprint, *self.other_fingerprints) if self.fingerprint else ()

    def decided_under(self, fingerprint: str) -> None:
        """Remember the numerics of tokens that are about to be put into the output."""
        if not self.output:
            self.fingerprint = fingerprint
        elif fingerprint not in (self.fingerprint, *self.other_fingerprints):
            self.other_fingerprints.append(fingerprint)

    def count_attempts_from_clock(self) -> None:
        """Make the next attempt's number higher than any that a run after the last save may have used."""
        clock = int((time.time() - ATTEMPTS_BEGIN_S) * ATTEMPTS_PER_S)
        self.attempt = max(self.attempt, min(clock, MAX_CLOCK_ATTEMPT))

    def save(self, path: str | Path) -> None:
        """Write to a file, atomically: a crash leaves the old file or the new one."""
        target = Path(path)
        body = self._to_json()
        document = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _digest(body), "generation": body}
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Generation:
        """Read a saved generation. Raises FileFormatError, naming the file and what is wrong with it."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read as a saved generation: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FileFormatError(f"{path} is not a saved generation")
        if document.get("version") != FORMAT_VERSION:
            raise FileFormatError(
                f"{path} has format version {document.get('version')!r}; this program reads {FORMAT_VERSION}"
            )
        body = document.get("generation")
        if not isinstance(body, dict) or document.get("sha256") != _digest(body):
            raise FileFormatError(f"{path} is damaged: its contents do not match their checksum")
        try:
            return cls._from_json(body)
        except (KeyError, TypeError, ValueError, PilotfishError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None

    def _to_json(self) -> dict[str, Any]:
        # The output first: another thread may be adding to it, and whatever decided a token was noted before it.
        output = list(self.output)
        return {
            "id": self.id.hex(),
            "attempt": self.attempt,
            "model": self.model,
            "tokenizer_hash": self.tokenizer_hash,
            "fingerprint": self.fingerprint,
            "other_fingerprints": list(self.other_fingerprints),
            "prompt": list(self.prompt),
            "output": output,
            "params": dataclasses.asdict(self.params),
            "finish": None if self.finish is None else [self.finish.reason.value, self.finish.stop],
        }

    @classmethod
    def _from_json(cls, body: dict[str, Any]) -> Generation:
        finish = body["finish"]
        return cls(
            id=bytes.fromhex(body["id"]),
            attempt=int(body["attempt"]),
            model=str(body["model"]),
            tokenizer_hash=str(body["tokenizer_hash"]),
            fingerprint=str(body["fingerprint"]),
            other_fingerprints=_names("other_fingerprints", body.get("other_fingerprints", [])),  # later than the rest
            prompt=_tokens("prompt", body["prompt"]),
            output=list(_tokens("output", body["output"])),
            params=SamplingParams.from_mapping(body["params"]),
            finish=None if finish is None else Finish(FinishReason(finish[0]), finish[1]),
        )


def _tokens(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise InvalidParameter.of(name, value, "a list of token ids")
    return tuple(value)


def _names(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidParameter.of(name, value, "a list of strings")
    return value


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
