"""One answer, held by the device: prompt, parameters, seed and committed tokens. Everything a resume needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import time
from pathlib import Path
from typing import Any, Final

from pilotfish.files import replace_file
from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.errors import FileFormatError, InvalidParameter, InvalidRequest
from pilotfish_core.messages import GENERATION_ID_BYTES, Ticket
from pilotfish_core.parameters import SamplingParams

ALONE: Final = "device-only:"  # what the fingerprint of a draft model's own text begins with
FORMAT: Final = "pilotfish-generation"
FORMAT_VERSION: Final = 1

# Attempts of a resumed generation begin at the quarter seconds since 2025, which are above those of a run that crashed
# without saving unless that one was admitted more than four times a second until its end. The wire's 32 bits hold them
# until 2059; a clock beyond that only counts up.
ATTEMPTS_BEGIN_S: Final = 1_735_689_600
ATTEMPTS_PER_S: Final = 4
MAX_CLOCK_ATTEMPT: Final = 2**32 - 2**16
MAX_ATTEMPT: Final = 2**32 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """Tokens that the app was shown unverified, the first one at ``position`` in prompt and output. Never changed, but
    replaced: another thread may be saving.
    """

    position: int
    tokens: tuple[int, ...]


@dataclasses.dataclass(slots=True, kw_only=True)
class Generation:
    """State of one answer. ``output`` only grows; ``unverified`` is what the app was shown behind it.

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
    ticket: Ticket | None = None  # the verifier's last proof of the output, to be shown when it is resumed
    shown: Shown | None = None  # while the link was away, and not decided when it was noted

    @property
    def unverified(self) -> tuple[int, ...]:
        """Tokens behind the output that the app was shown while the link was away, and that are not decided."""
        shown = self.shown  # first: the output may grow meanwhile
        return _behind(shown, len(self.prompt), self.output)

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

    @property
    def verified(self) -> bool:
        """Whether a verifier decided all of its tokens."""
        return not any(each.startswith(ALONE) for each in (self.fingerprint, *self.other_fingerprints))

    @property
    def own(self) -> bool:
        """Whether all of its tokens, and there are some, are the device's own."""
        return bool(self.output) and all(each.startswith(ALONE) for each in self.fingerprints or ("",))

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
        """Write to a file, atomically: a crash leaves the old file or the new one. Raises FileFormatError."""
        body = self._to_json()
        document = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _digest(body), "generation": body}
        text = json.dumps(document)
        try:
            replace_file(path, text)
        except OSError as error:
            raise FileFormatError(f"{path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Generation:
        """Read a saved generation. Raises FileFormatError, naming the file and what is wrong with it."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} cannot be read as a saved generation: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise FileFormatError(f"{path} is not a saved generation")
        if document.get("version") != FORMAT_VERSION:
            raise FileFormatError(
                f"{path} has format version {document.get('version')!r}; this program reads {FORMAT_VERSION}"
            )
        body = document.get("generation")
        try:
            if not isinstance(body, dict) or document.get("sha256") != _digest(body):
                raise FileFormatError(f"{path} is damaged: its contents do not match their checksum")
            return cls._from_json(body)
        except KeyError as error:
            raise FileFormatError(f"{path} is damaged: {error} is missing") from None
        except (TypeError, ValueError, RecursionError, InvalidRequest) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None

    def _to_json(self) -> dict[str, Any]:
        # The output first: another thread may be adding to it, and whatever decided a token was noted before it; but
        # before that the ticket, which comes after the tokens that it proves.
        ticket = self.ticket
        shown, output = self.shown, list(self.output)
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
            "unverified": list(_behind(shown, len(self.prompt), output)),
            "ticket": None if ticket is None else [ticket.value.hex(), ticket.length],
        }

    @classmethod
    def _from_json(cls, body: dict[str, Any]) -> Generation:
        attempt, params = body["attempt"], body["params"]
        if type(attempt) is not int or not 0 <= attempt <= MAX_ATTEMPT:
            raise InvalidParameter.of("attempt", attempt, f"an integer in [0, {MAX_ATTEMPT}]")
        if not isinstance(params, dict):
            raise InvalidParameter.of("params", params, "an object")
        unverified = _tokens("unverified", body.get("unverified", []))  # later than the rest
        return cls(
            id=bytes.fromhex(body["id"]),
            attempt=attempt,
            model=str(body["model"]),
            tokenizer_hash=str(body["tokenizer_hash"]),
            fingerprint=str(body["fingerprint"]),
            other_fingerprints=_names("other_fingerprints", body.get("other_fingerprints", [])),  # later than the rest
            prompt=_tokens("prompt", body["prompt"]),
            output=list(_tokens("output", body["output"])),
            params=SamplingParams.from_mapping(params),
            finish=_finish(body["finish"]),
            shown=Shown(len(body["prompt"]) + len(body["output"]), unverified) if unverified else None,
            ticket=_ticket(body.get("ticket"), len(body["prompt"]), len(body["output"])),  # later than the rest
        )


def _behind(shown: Shown | None, prompt: int, output: list[int]) -> tuple[int, ...]:
    """Of what was shown, what is still behind the output; nothing where the output went elsewhere."""
    if shown is None:
        return ()
    decided = tuple(output[shown.position - prompt :])
    return shown.tokens[len(decided) :] if decided == shown.tokens[: len(decided)] else ()


def _tokens(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise InvalidParameter.of(name, value, "a list of token ids")
    return tuple(value)


def _ticket(value: object, prompt: int, output: int) -> Ticket | None:
    match value:
        case None:
            return None
        case [str(proof), int(length)] if prompt <= length <= prompt + output:
            return Ticket(bytes.fromhex(proof), length)
    raise InvalidParameter.of("ticket", value, "null, or a proof in hexadecimal and the position up to which it holds")


def _finish(value: object) -> Finish | None:
    match value:
        case None:
            return None
        case [str(reason), None | int() | str() as stop]:
            return Finish(FinishReason(reason), stop)
    raise InvalidParameter.of("finish", value, "null, or a reason and what stopped it")


def _names(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidParameter.of(name, value, "a list of strings")
    return value


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
