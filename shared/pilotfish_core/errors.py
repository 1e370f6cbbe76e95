"""The one tree of errors of Pilotfish, and how each crosses an edge.

::

    PilotfishError
    ├── InvalidRequest            the caller's request is wrong; repeating it will not help
    │   ├── InvalidParameter      a value is out of range (names it, and what was expected)
    │   ├── UnsupportedParameter  a parameter that is known but not supported, or not known
    │   ├── PromptTooLong         prompt (plus resumed output) does not fit the context
    │   ├── ResumeRefused         a resume that the verifier does not accept
    │   └── ProtocolViolation     the peer sent frames that the protocol does not allow
    ├── UnknownModel              no such model on this verifier
    ├── TokenizerMismatch         device and verifier do not share a tokenizer
    ├── FingerprintMismatch       the replica computes with other numerics than the generation began with
    ├── Unauthenticated           missing or wrong credentials
    ├── PermissionDenied          known, but not allowed
    ├── Overloaded                refused at admission; carries a retry hint
    ├── Unavailable               no connection, cut, draining: a resume may succeed
    ├── DeadlineExceeded          the caller's deadline passed
    ├── Cancelled                 ended by the caller, or superseded by a newer attempt
    ├── EngineFailure             the verifier could not compute (never the caller's fault)
    │   └── NumericalFailure      the target produced logits that are not numbers
    └── LocalError                wrong set-up on this machine
        ├── MissingExtra          an optional dependency is not installed (names the extra)
        ├── ModelLoadError        a model folder cannot be used (names file and reason)
        ├── FileFormatError       a file of ours is damaged or of another version
        └── AddressInUse          a port is taken

The public message (``str(error)``) may be shown to any user. ``private`` is for the log of the side that raised
it. The tables at the end are the only place where kinds meet gRPC status names and HTTP status codes.
"""

from __future__ import annotations

from typing import ClassVar, Final

MAX_SHOWN: Final = 200  # characters of a bad value in a message


class PilotfishError(Exception):
    """Root of all errors raised on purpose. ``kind`` is the stable name that crosses the wire."""

    kind: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, private: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.private = private
        self.retry_after_s = retry_after_s
        self.route: str | None = None  # the load balancer's key with which to try again


class InvalidRequest(PilotfishError):
    """The request is wrong; repeating it will not help. ``parameter`` names what is wrong, if it has a name."""

    kind = "invalid_request"
    parameter: str | None = None


class InvalidParameter(InvalidRequest):
    """A parameter's value is outside what is allowed."""

    kind = "invalid_parameter"

    @classmethod
    def of(cls, name: str, value: object, expected: str) -> InvalidParameter:
        """The usual message: which parameter, which value (its beginning, if it is long), what was expected."""
        try:
            shown = repr(value)
        except ValueError:  # an integer of thousands of digits
            shown = f"a huge {type(value).__name__}"
        if len(shown) > MAX_SHOWN:
            shown = f"{shown[:MAX_SHOWN]}... ({len(shown)} characters)"
        error = cls(f"{name} is {shown}; expected {expected}")
        error.parameter = name
        return error


class UnsupportedParameter(InvalidRequest):
    """A parameter that this version does not support."""

    kind = "unsupported_parameter"

    @classmethod
    def of(cls, name: str, instead: str = "") -> UnsupportedParameter:
        """The usual message; ``instead``: what the caller can do."""
        error = cls(f"{name} is not supported{'; ' * bool(instead)}{instead}")
        error.parameter = name
        return error


class PromptTooLong(InvalidRequest):
    """Prompt and resumed output do not fit the target's context."""

    kind = "prompt_too_long"


class ResumeRefused(InvalidRequest):
    """The verifier does not accept this resume."""

    kind = "resume_refused"


class ProtocolViolation(InvalidRequest):
    """The peer sent something that the protocol does not allow at this point."""

    kind = "protocol_violation"


class UnknownModel(PilotfishError):
    """The verifier does not serve this model."""

    kind = "unknown_model"


class TokenizerMismatch(PilotfishError):
    """Device and verifier map token ids to different bytes."""

    kind = "tokenizer_mismatch"


class FingerprintMismatch(PilotfishError):
    """The replica's numerics differ from those the generation began with."""

    kind = "fingerprint_mismatch"


class Unauthenticated(PilotfishError):
    """Credentials are missing or wrong."""

    kind = "unauthenticated"


class PermissionDenied(PilotfishError):
    """The caller is known but may not do this."""

    kind = "permission_denied"


class Overloaded(PilotfishError):
    """Refused at admission, before any work; ``retry_after_s`` says when to try again."""

    kind = "overloaded"
    retryable = True


class Unavailable(PilotfishError):
    """The verifier cannot be reached, cut the stream or is draining; a resume may succeed."""

    kind = "unavailable"
    retryable = True


class DeadlineExceeded(PilotfishError):
    """The caller's deadline passed."""

    kind = "deadline_exceeded"


class Cancelled(PilotfishError):
    """Ended by the caller, or superseded by a newer attempt of the same generation."""

    kind = "cancelled"


class EngineFailure(PilotfishError):
    """The verifier could not compute a step."""

    kind = "engine_failure"
    retryable = True


class NumericalFailure(EngineFailure):
    """The target's logits are not numbers; the text so far is kept."""

    kind = "numerical_failure"
    retryable = False


class LocalError(PilotfishError):
    """Something on this machine is not set up."""

    kind = "local_error"


class MissingExtra(LocalError):
    """An optional dependency is not installed."""

    kind = "missing_extra"

    @classmethod
    def of(cls, module: str, extra: str, purpose: str) -> MissingExtra:
        """The one line that names what to install."""
        return cls(f"{purpose} needs the Python package {module!r}: pip install 'pilotfish[{extra}]'")


class ModelLoadError(LocalError):
    """A model folder cannot be used."""

    kind = "model_load_error"


class FileFormatError(LocalError):
    """A file written by Pilotfish is damaged, or of another version."""

    kind = "file_format_error"


class AddressInUse(LocalError):
    """The address is taken or cannot be bound."""

    kind = "address_in_use"


def _descendants(root: type[PilotfishError]) -> dict[str, type[PilotfishError]]:
    found = {root.kind: root}
    for child in root.__subclasses__():
        found |= _descendants(child)
    return found


ERRORS_BY_KIND: Final[dict[str, type[PilotfishError]]] = _descendants(PilotfishError)

# kind -> (gRPC status name, HTTP status). Local errors never cross an edge; should one slip out it is INTERNAL.
STATUS_BY_KIND: Final[dict[str, tuple[str, int]]] = {
    "invalid_request": ("INVALID_ARGUMENT", 400),
    "invalid_parameter": ("INVALID_ARGUMENT", 400),
    "unsupported_parameter": ("INVALID_ARGUMENT", 400),
    "prompt_too_long": ("INVALID_ARGUMENT", 400),
    "resume_refused": ("FAILED_PRECONDITION", 409),
    "protocol_violation": ("INVALID_ARGUMENT", 400),
    "unknown_model": ("NOT_FOUND", 404),
    "tokenizer_mismatch": ("FAILED_PRECONDITION", 409),
    "fingerprint_mismatch": ("FAILED_PRECONDITION", 409),
    "unauthenticated": ("UNAUTHENTICATED", 401),
    "permission_denied": ("PERMISSION_DENIED", 403),
    "overloaded": ("RESOURCE_EXHAUSTED", 429),
    "unavailable": ("UNAVAILABLE", 503),
    "deadline_exceeded": ("DEADLINE_EXCEEDED", 504),
    "cancelled": ("CANCELLED", 499),
    "engine_failure": ("INTERNAL", 500),
    "numerical_failure": ("INTERNAL", 500),
}
INTERNAL_STATUS: Final = ("INTERNAL", 500)


def error_of_kind(kind: str, message: str, *, retry_after_s: float | None = None) -> PilotfishError:
    """Rebuild an error that crossed the wire; an unknown kind (a newer peer) becomes the root class."""
    return ERRORS_BY_KIND.get(kind, PilotfishError)(message, retry_after_s=retry_after_s)
