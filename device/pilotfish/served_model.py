"""What a verifier says of the model that a client asks for."""

from __future__ import annotations

import dataclasses

from pilotfish.foreign_text import one_line
from pilotfish.transport import Transport
from pilotfish_core.errors import UnknownModel


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A target. ``max_model_len``: prompt and output, in tokens; ``tokenizer_hash`` in hexadecimal."""

    name: str
    tokenizer_hash: str
    vocabulary_size: int
    max_model_len: int
    fingerprint: str
    deterministic: bool
    dtype: str


async def served_model(transport: Transport, model: str) -> ServedModel:
    """The model of that name, or the first one for an empty name. Raises UnknownModel, and what the verifier says."""
    described = await transport.describe()
    for entry in described.models:
        if model in ("", entry.name):
            return ServedModel(
                name=entry.name,
                tokenizer_hash=entry.tokenizer_hash.hex(),
                vocabulary_size=entry.vocabulary_size,
                max_model_len=entry.max_model_len,
                fingerprint=entry.fingerprint,
                deterministic=entry.deterministic,
                dtype=entry.dtype,
            )
    served = one_line(", ".join(repr(entry.name) for entry in described.models))
    raise UnknownModel(f"the verifier does not serve model {model!r}; it serves {served}")
