/**
 * The errors of the SDK: one tree, whose kinds are the names that cross the wire (`pilotfish_core.errors`).
 *
 *     PilotfishError
 *     ├── InvalidRequest            the request is wrong; repeating it will not help
 *     │   ├── InvalidParameter      a value is out of range (names it, and what was expected)
 *     │   ├── UnsupportedParameter  a parameter that is not known
 *     │   ├── PromptTooLong, ResumeRefused, ProtocolViolation
 *     ├── UnknownModel, TokenizerMismatch, FingerprintMismatch, Unauthenticated, PermissionDenied
 *     ├── Overloaded, Unavailable   may succeed later: the driver tries again by itself
 *     ├── DeadlineExceeded, Cancelled
 *     ├── EngineFailure ── NumericalFailure
 *     └── LocalError                wrong set-up on this device
 *         ├── ModelLoadError        a draft model or tokenizer cannot be used
 *         └── FileFormatError       a saved generation is damaged, or of another version
 */

const MAX_SHOWN = 200;

/** Root of all errors raised on purpose. */
export class PilotfishError extends Error {
  /** The stable name that crosses the wire. */
  readonly kind: string = "internal";
  /** Whether the driver may try again. */
  readonly retryable: boolean = false;
  /** Seconds after which the verifier wants to be asked again. */
  retryAfterS: number | null;
  /** The load balancer's key with which to try again. */
  route: string | null = null;

  constructor(message: string, retryAfterS: number | null = null) {
    super(message);
    this.name = new.target.name;
    this.retryAfterS = retryAfterS;
  }
}

export class InvalidRequest extends PilotfishError {
  override readonly kind: string = "invalid_request";
  /** What is wrong, if it has a name. */
  parameter: string | null = null;
}

export class InvalidParameter extends InvalidRequest {
  override readonly kind = "invalid_parameter";

  /** The usual message: which parameter, which value, what was expected. */
  static of(name: string, value: unknown, expected: string): InvalidParameter {
    let shown = typeof value === "bigint" ? `${value}` : (JSON.stringify(value) ?? String(value));
    if (typeof value === "number") shown = String(value); // JSON has no NaN
    if (shown.length > MAX_SHOWN) shown = `${shown.slice(0, MAX_SHOWN)}... (${shown.length} characters)`;
    const error = new InvalidParameter(`${name} is ${shown}; expected ${expected}`);
    error.parameter = name;
    return error;
  }
}

export class UnsupportedParameter extends InvalidRequest {
  override readonly kind = "unsupported_parameter";
}

export class PromptTooLong extends InvalidRequest {
  override readonly kind = "prompt_too_long";
}

export class ResumeRefused extends InvalidRequest {
  override readonly kind = "resume_refused";
}

export class ProtocolViolation extends InvalidRequest {
  override readonly kind = "protocol_violation";
}

export class UnknownModel extends PilotfishError {
  override readonly kind = "unknown_model";
}

export class TokenizerMismatch extends PilotfishError {
  override readonly kind = "tokenizer_mismatch";
}

export class FingerprintMismatch extends PilotfishError {
  override readonly kind = "fingerprint_mismatch";
}

export class Unauthenticated extends PilotfishError {
  override readonly kind = "unauthenticated";
}

export class PermissionDenied extends PilotfishError {
  override readonly kind = "permission_denied";
}

export class Overloaded extends PilotfishError {
  override readonly kind = "overloaded";
  override readonly retryable = true;
}

export class Unavailable extends PilotfishError {
  override readonly kind = "unavailable";
  override readonly retryable = true;
}

export class DeadlineExceeded extends PilotfishError {
  override readonly kind = "deadline_exceeded";
}

export class Cancelled extends PilotfishError {
  override readonly kind = "cancelled";
}

export class EngineFailure extends PilotfishError {
  override readonly kind: string = "engine_failure";
  override readonly retryable: boolean = true;
}

export class NumericalFailure extends EngineFailure {
  override readonly kind = "numerical_failure";
  override readonly retryable = false;
}

export class LocalError extends PilotfishError {
  override readonly kind: string = "local_error";
}

export class ModelLoadError extends LocalError {
  override readonly kind = "model_load_error";
}

export class FileFormatError extends LocalError {
  override readonly kind = "file_format_error";
}

type ErrorClass = new (message: string, retryAfterS?: number | null) => PilotfishError;

const BY_KIND: Readonly<Record<string, ErrorClass>> = {
  invalid_request: InvalidRequest,
  invalid_parameter: InvalidParameter,
  unsupported_parameter: UnsupportedParameter,
  prompt_too_long: PromptTooLong,
  resume_refused: ResumeRefused,
  protocol_violation: ProtocolViolation,
  unknown_model: UnknownModel,
  tokenizer_mismatch: TokenizerMismatch,
  fingerprint_mismatch: FingerprintMismatch,
  unauthenticated: Unauthenticated,
  permission_denied: PermissionDenied,
  overloaded: Overloaded,
  unavailable: Unavailable,
  deadline_exceeded: DeadlineExceeded,
  cancelled: Cancelled,
  engine_failure: EngineFailure,
  numerical_failure: NumericalFailure,
  local_error: LocalError,
  model_load_error: ModelLoadError,
  file_format_error: FileFormatError,
};

/** An error that crossed the wire; an unknown kind (a newer peer) becomes the root class. */
export function errorOfKind(kind: string, message: string, retryAfterS: number | null = null): PilotfishError {
  return new (BY_KIND[kind] ?? PilotfishError)(message, retryAfterS);
}

/** Whether a kind of error is known here. */
export function isKnownKind(kind: string): boolean {
  return kind in BY_KIND;
}
