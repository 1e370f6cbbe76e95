/** What the page says: arms, reasons, states and errors in sentences. */

import { type Arm, PilotfishError, type Result } from "../../sdk/src/index.js";

export const ARM_NAMES: Readonly<Record<Arm, string>> = {
  auto: "Auto",
  cloud: "Cloud alone",
  "co-located": "Cloud drafts",
  "co-located-ngram": "Cloud, by lookup",
  "co-located-model": "Cloud, by a model",
  "device-lockstep": "Phone, in lockstep",
  "device-async": "Phone, without waiting",
  "device-only": "Phone alone",
};

export const ARM_NOTES: Readonly<Record<Arm, string>> = {
  auto: "The policy chooses, and says why.",
  cloud: "Nobody drafts; the large model writes by itself.",
  "co-located": "The cloud drafts with the best that it has.",
  "co-located-ngram": "The cloud guesses from what is already in the text.",
  "co-located-model": "The cloud runs a small model of its own beside the large one.",
  "device-lockstep": "This phone drafts, sends, and waits for each verdict: the usual scheme, for comparison.",
  "device-async": "This phone drafts on while the cloud checks: neither waits for the other.",
  "device-only": "Nothing is sent. The small model writes alone, and nothing it writes is verified.",
};

const REASONS: Readonly<Record<string, string>> = {
  ramp: "Too little is known yet: one or two tokens ahead.",
  useful: "Its drafts are expected to pay.",
  useless: "The cloud rarely agrees with drafts from here.",
  slow: "Drafts from here would come too late.",
  "cloud-drafts": "The cloud's own drafts are expected to pay more.",
  load: "The cloud is busy and asked for no drafts.",
  battery: "The battery is to be spared.",
  bytes: "Bytes are to be spared.",
  fixed: "As you chose.",
  "no-drafter": "There is nothing to draft with on this device yet.",
};

export function reasonInWords(reason: string): string {
  return REASONS[reason] ?? reason;
}

const ERRORS: Readonly<Record<string, string>> = {
  unavailable: "The cloud cannot be reached.",
  overloaded: "The cloud has too much to do. Try again in a moment.",
  unauthenticated: "The cloud wants a key that this page does not have. Open the link with its key again.",
  permission_denied: "The key of this page does not allow that.",
  prompt_too_long: "That beginning is longer than the model can take.",
  tokenizer_mismatch: "The draft model on this device was made for another vocabulary. Reload the page.",
  unknown_model: "The cloud serves another model now. Reload the page.",
  fingerprint_mismatch: "Another cloud has taken over whose numbers differ; the text would not be the same.",
  deadline_exceeded: "It took too long.",
  engine_failure: "The large model failed. Nothing that is plain in the text has changed.",
  model_load_error: "The draft model could not be loaded.",
};

/** A sentence for a person, and behind it what the SDK says. */
export function wordsOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  const words = error instanceof PilotfishError ? ERRORS[error.kind] : undefined;
  return words === undefined ? sentence(message) : `${words} (${message})`;
}

/** `failure`: why the draft model is not in use. */
export function readyInWords(drafts: boolean, failure: Error | null): string {
  if (drafts) return "Ready.";
  return `Ready, but without a draft model on this device: ${failure === null ? "none is on offer." : wordsOf(failure)}`;
}

export function retryInWords(retryInS: number | null): string {
  const when = retryInS === null || retryInS < 1 ? "in a moment" : `in ${Math.ceil(retryInS)} s`;
  return `The link was lost. Trying again ${when}; nothing that is plain changes.`;
}

/** How an answer ended. `alone`: nothing of it was to be verified. */
export function doneInWords(result: Result, alone: boolean): string {
  const { metrics } = result;
  const count = metrics.completionTokens;
  const tokens = `${count} ${count === 1 ? "token" : "tokens"} in ${metrics.elapsedS.toFixed(1)} s`;
  const parts = [result.finishReason === "abort" ? `Stopped after ${tokens}` : `Done: ${tokens}`];
  if (alone) parts.push("written on this device alone, nothing of it is verified");
  else if (result.unverifiedText !== "") parts.push("the dotted text is not verified");
  else parts.push("all verified");
  if (metrics.reconnects > 0) parts.push(metrics.reconnects === 1 ? "reconnected once" : `reconnected ${metrics.reconnects} times`);
  if (metrics.unverifiedTokens > 0 && !alone) {
    parts.push(`of ${metrics.unverifiedTokens} tokens written without the cloud ${metrics.confirmedTokens} confirmed`);
  }
  if (metrics.drafterError !== null) parts.push(`the draft model failed: ${metrics.drafterError}`);
  return `${parts.join("; ")}.`;
}

export function sentence(text: string): string {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** Bytes for a person: 640, 12.3k. */
export function shortCount(count: number): string {
  if (count < 10_000) return String(Math.round(count));
  return `${(count / 1000).toFixed(count < 100_000 ? 1 : 0)}k`;
}

/** Megabytes with one digit. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
