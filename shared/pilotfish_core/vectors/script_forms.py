"""What a device core is told and answers, as JSON values."""

from __future__ import annotations

import enum
from typing import Any

from pilotfish_core.device_actions import (
    Action,
    AskWhether,
    Connect,
    Deliver,
    DeviceConfig,
    Keep,
    SendAcknowledge,
    SendDraft,
    SendHint,
    SendMode,
    SendPing,
    ShowUnverified,
)
from pilotfish_core.drafts import Commit, Finish
from pilotfish_core.errors import PilotfishError
from pilotfish_core.messages import Opened, Pong, Ticket
from pilotfish_core.modes import Advice, Hint, Mode


def action_form(action: Action) -> dict[str, Any]:
    """By the names of the TypeScript device's actions."""
    match action:
        case Connect(attempt, length, mode, ticket):
            return {
                "kind": "connect",
                "attempt": attempt,
                "length": length,
                "mode": _mode(mode),
                "ticket": ticket.hex() or None,
            }
        case SendDraft(run, acknowledged):
            form = {"branch": run.branch, "start": run.start, "tokens": list(run.tokens)}
            return {"kind": "send-draft", "run": form, "acknowledged": acknowledged}
        case SendAcknowledge(length):
            return {"kind": "send-acknowledge", "length": length}
        case SendPing(ping):
            return {"kind": "send-ping", "nonce": ping.nonce}
        case SendMode(mode):
            return {"kind": "send-mode", "mode": _mode(mode)}
        case SendHint(hint):
            return {"kind": "send-hint", "hint": hint_form(hint)}
        case Deliver():
            return {
                "kind": "deliver",
                "tokens": list(action.tokens),
                "origins": [origin.value for origin in action.origins],
                "logprobs": None,
                "confirmed": action.confirmed,
                "withdrawn": action.withdrawn,
                "undecided": action.undecided,
                "position": action.position,
            }
        case ShowUnverified(position, tokens):
            return {"kind": "show-unverified", "position": position, "tokens": list(tokens)}
        case AskWhether(number, tokens):
            return {"kind": "ask-whether", "number": number, "tokens": list(tokens)}
        case Keep(tokens):
            return {"kind": "keep", "tokens": list(tokens)}
    error = action.error
    return {"kind": "end", "finish": _finish(action.finish), "error": None if error is None else error.kind}


def event_form(value: Any) -> Any:
    """An argument of an event."""
    match value:
        case Opened():
            return {
                "protocolVersion": value.protocol_version,
                "model": value.model,
                "fingerprint": value.fingerprint,
                "maxModelLen": value.max_model_len,
                "maxDraftTokens": value.max_draft_tokens,
                "maxUnacknowledged": value.max_unacknowledged,
                "cachedTokens": value.cached_tokens,
                "otherFingerprint": value.other_fingerprint,
                "drafts": list(value.drafts),
                "cloudDraft": int(value.cloud_draft),
                "routes": list(value.routes),
            }
        case Commit():
            return {
                "position": value.position,
                "tokens": list(value.tokens),
                "accepted": value.accepted,
                "origin": value.origin.value,
                "finish": _finish(value.finish),
                "logprobs": None,
            }
        case Ticket(proof, length):
            return {"value": proof.hex(), "length": length}
        case Pong(nonce):
            return nonce
        case Advice():
            return {
                "stepS": value.step_s,
                "cloudDraft": int(value.cloud_draft),
                "cloudGain": value.cloud_gain,
                "cloudCost": value.cloud_cost,
                "maxDraftTokens": value.max_draft_tokens,
                "reason": value.reason,
            }
        case Hint():
            return hint_form(value)
        case PilotfishError():
            return {"kind": value.kind, "retryAfterS": value.retry_after_s}
        case enum.Enum():
            return value.value
        case list() | tuple():
            return list(value)
    return value


def config_form(config: DeviceConfig) -> dict[str, Any]:
    """What differs from one script to another."""
    offline = config.offline
    return {
        "window": config.window,
        "adaptive": config.adaptive,
        "arm": config.arm.value,
        "objective": config.objective.value,
        "draftChunk": config.draft_chunk,
        "acknowledgeEvery": config.acknowledge_every,
        "pingAfterS": config.ping_after_s,
        "pingTimeoutS": config.ping_timeout_s,
        "measureEveryS": config.measure_every_s,
        "offline": None if offline is None else {"onReconnect": offline.on_reconnect.value, "afterS": offline.after_s},
    }


def hint_form(hint: Hint) -> dict[str, bool]:
    """By the names of the TypeScript device."""
    return {
        "batteryLow": hint.battery_low,
        "meteredNetwork": hint.metered_network,
        "preferFast": hint.prefer_fast,
    }


def _mode(mode: Mode) -> dict[str, Any]:
    return {"pacing": mode.pacing.value, "cloudDraft": int(mode.cloud_draft)}


def _finish(finish: Finish | None) -> dict[str, Any] | None:
    return None if finish is None else {"reason": finish.reason.value, "stop": finish.stop}
