"""One answer, held by the device: prompt, parameters, seed and committed tokens. Everything a resume needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, Final

from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.errors import FileFormatError, InvalidParameter, PilotfishError
from pilotfish_core.messages import GENERATION_ID_BYTES
from pilotfish_core.parameters import SamplingParams

FORMAT: Final = "pilotfish-generation"
FORMAT_VERSION: Final = 1


@dataclasses.dataclass(slots=True, kw_only=True)
class Generation:
    """State of one answer. ``output`` only grows; ``fingerprint`` is the numerics it began under."""

    prompt: tuple[int, ...]
    params: SamplingParams
    model: str = ""
    tokenizer_hash: str = ""
    id: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(GENERATION_ID_BYTES))
    attempt: int = 0
    output: list[int] = dataclasses.field(default_factory=list)
    fingerprint: str = ""
    finish: Finish | None = None

    @property
    def finished(self) -> bool:
        """Whether the cloud has ended it (a cancelled one can be resumed)."""
        return self.finish is not None and self.finish.reason is not FinishReason.ABORT

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
        return {
            "id": self.id.hex(),
            "attempt": self.attempt,
            "model": self.model,
            "tokenizer_hash": self.tokenizer_hash,
            "fingerprint": self.fingerprint,
            "prompt": list(self.prompt),
            "output": list(self.output),
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
            prompt=_tokens("prompt", body["prompt"]),
            output=list(_tokens("output", body["output"])),
            params=SamplingParams.from_mapping(body["params"]),
            finish=None if finish is None else Finish(FinishReason(finish[0]), finish[1]),
        )


def _tokens(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise InvalidParameter.of(name, value, "a list of token ids")
    return tuple(value)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
