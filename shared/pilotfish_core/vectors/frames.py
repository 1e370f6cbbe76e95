"""Frames of the wire with the messages in them, for devices in other languages: what they write, and what they read."""

from __future__ import annotations

import random
from typing import Any, Final

from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason, Origin, TokenLogprobs
from pilotfish_core.messages import Open, Opened, Ping, PrefixUnknown, Ticket
from pilotfish_core.modes import Advice, CloudDraft, Hint, Mode, Pace, Pacing
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import prefixes
from pilotfish_core.vectors.script_forms import event_form, hint_form
from pilotfish_core.wire import CloudFrameReader, CloudFrameWriter, DeviceFrameWriter

STREAMS: Final = 100


def frame_vectors(count: int = STREAMS) -> dict[str, Any]:
    """``up``: streams of ``[message, hex of its frame]`` and whether they are padded; ``down``: streams of
    ``[hex of a frame, messages in it]``.
    """
    return {"up": [_up(number) for number in range(count)], "down": [_down(number) for number in range(count)]}


def _up(number: int) -> dict[str, Any]:
    chance = random.Random(f"up {number}")
    padded = number % 3 == 0
    writer = DeviceFrameWriter(padded=padded)
    frames: list[list[Any]] = []
    opening = _opening(chance)
    values = {
        "temperature": opening.params.temperature,
        "topK": opening.params.top_k,
        "topP": opening.params.top_p,
        "seed": str(opening.params.seed),
        "maxTokens": opening.params.max_tokens,
        "stop": list(opening.params.stop),
        "stopTokenIds": list(opening.params.stop_token_ids),
        "logitBias": [list(pair) for pair in opening.params.logit_bias],
        "logprobs": opening.params.logprobs,
    }
    pace, prefix = opening.pace, opening.prefix
    form = {
        "kind": "open",
        "model": opening.model,
        "tokenizerHash": opening.tokenizer_hash,
        "generationId": opening.generation_id.hex(),
        "attempt": opening.attempt,
        "prompt": list(opening.prompt),
        "params": values,
        "output": list(opening.output),
        "fingerprint": opening.fingerprint,
        "allowOtherFingerprint": opening.allow_other_fingerprint,
        "mode": {"pacing": opening.mode.pacing.value, "cloudDraft": int(opening.mode.cloud_draft)},
        "hint": hint_form(opening.hint),
        "pace": None
        if pace is None
        else {"roundTripS": pace.round_trip_s, "draftS": pace.draft_s, "acceptance": pace.acceptance},
        "prefix": None if prefix is None else {"digest": prefix.digest.hex(), "length": prefix.length},
        "ticket": opening.ticket.hex(),
    }
    frames.append([form, writer.open(opening).SerializeToString().hex()])
    branch, end = -1, opening.prompt_length + len(opening.output)
    for _ in range(20):
        kind = chance.randrange(7)
        if kind == 0:
            length = chance.randrange(5000)
            frame = writer.acknowledge(length)
            form = {"kind": "acknowledge", "length": length}
        elif kind == 1:
            nonce = chance.randrange(300)
            frame, form = writer.ping(Ping(nonce)), {"kind": "ping", "nonce": nonce}
        elif kind == 2:
            mode = Mode(chance.choice(list(Pacing)), chance.choice(list(CloudDraft)))
            frame = writer.mode(mode)
            form = {"kind": "mode", "mode": {"pacing": mode.pacing.value, "cloudDraft": int(mode.cloud_draft)}}
        elif kind == 3:
            hint = Hint(*(chance.random() < 0.5 for _ in range(3)))
            frame, form = writer.hint(hint), {"kind": "hint", "hint": hint_form(hint)}
        else:
            if branch < 0 or chance.random() < 0.4:
                branch, end = branch + chance.choice((1, 1, 1, 3)), max(end + chance.randrange(-3, 20), 0)
            tokens = tuple(chance.randrange(150_000) for _ in range(chance.randrange(6)))
            run = DraftRun(branch, end, tokens)
            acknowledged = chance.choice((None, end, end + 1))
            frame, end = writer.draft(run, acknowledged), run.end
            form = {
                "kind": "draft",
                "run": {"branch": run.branch, "start": run.start, "tokens": list(tokens)},
                "acknowledged": acknowledged,
            }
        frames.append([form, frame.SerializeToString().hex()])
    return {"padded": padded, "frames": frames}


def _opening(chance: random.Random) -> Open:
    prompt = tuple(chance.randrange(150_000) for _ in range(chance.randrange(1, 60)))
    named = prefixes(prompt)
    prefix = named[-1] if named and chance.random() < 0.5 else None
    return Open(
        model=chance.choice(("", "target", "größer/Modell")),
        tokenizer_hash=chance.randbytes(32).hex(),
        generation_id=chance.randbytes(16),
        attempt=chance.choice((1, 7, 118_000_000)),
        prompt=prompt if prefix is None else prompt[prefix.length :],
        prefix=prefix,
        params=SamplingParams(
            temperature=chance.choice((0.0, 0.8, 1.0)),
            top_k=chance.choice((0, 40)),
            top_p=chance.choice((1.0, 0.9)),
            seed=chance.choice((0, 7, 2**53 + 1, 2**64 - 1)),
            max_tokens=chance.choice((1, 256, 2**31 - 1)),
            stop=chance.choice(((), ("\n\n", "ende\u00df"))),
            stop_token_ids=chance.choice(((), (3, 4096))),
            logit_bias=chance.choice(((), ((5, -1.5),))),
            logprobs=chance.choice((None, 0, 5)),
        ),
        output=tuple(chance.randrange(150_000) for _ in range(chance.choice((0, 9)))),
        fingerprint=chance.choice(("", "cpu-f32")),
        allow_other_fingerprint=chance.random() < 0.3,
        mode=Mode(chance.choice(list(Pacing)), chance.choice(list(CloudDraft))),
        hint=Hint(battery_low=chance.random() < 0.3),
        pace=chance.choice((None, Pace(chance.random() / 5, chance.random() / 90, chance.random()))),
        ticket=chance.choice((b"", chance.randbytes(12))),
    )


def _down(number: int) -> list[list[Any]]:
    chance = random.Random(f"down {number}")
    writer, reader = CloudFrameWriter(padded=number % 4 == 0), CloudFrameReader()
    end = chance.randrange(4000)
    frames = [
        writer.opened(
            Opened(
                model="target",
                fingerprint="cpu",
                max_model_len=chance.randrange(1, 200_000),
                max_draft_tokens=chance.randrange(1, 65),
                max_unacknowledged=chance.randrange(1, 600),
                cached_tokens=chance.randrange(500),
                other_fingerprint=chance.random() < 0.5,
                drafts=chance.choice(((), ("a", "b"))),
                cloud_draft=chance.choice(list(CloudDraft)),
                routes=chance.choice(((), ("0af~", "x.y_z-"))),
            )
        )
    ]
    for _ in range(20):
        kind = chance.randrange(6)
        if kind == 0:
            frames.append(writer.pong(Ping(chance.randrange(300))))
        elif kind == 1:
            gain = chance.choice((-0.5, 0.0, 0.25, 3.0))  # float32 holds them
            most = chance.choice((None, 0, 3))
            advice = Advice(chance.randrange(90_000) / 1e6, chance.choice(list(CloudDraft)), gain, 0.5, most, "busy")
            frames.append(writer.advice(advice))
        elif kind == 2 and chance.random() < 0.2:
            frames.append(writer.prefix_unknown())
        else:
            tokens = tuple(chance.randrange(150_000) for _ in range(chance.randrange(1, 7)))
            position = end if chance.random() < 0.8 else max(end - chance.randrange(4), 0)
            top = TokenLogprobs(-0.5, ((3, -0.5), (9, -1.25)))
            commit = Commit(
                position,
                tokens,
                accepted=chance.choice((0, len(tokens) - 1, len(tokens))),
                origin=chance.choice((Origin.RECOVERED, Origin.BONUS, Origin.CLOUD)),
                finish=chance.choice((None, None, None, Finish(FinishReason.LENGTH), Finish(FinishReason.STOP, "\n"))),
                logprobs=(top,) * len(tokens) if chance.random() < 0.2 else None,
            )
            end = commit.end
            frames.append(writer.commit(commit, chance.randbytes(12) if chance.random() < 0.3 else None))
    return [[frame.SerializeToString().hex(), [_read(message) for message in reader.read(frame)]] for frame in frames]


def _read(message: Any) -> dict[str, Any]:
    """By the names of the TypeScript device's messages."""
    if isinstance(message, PrefixUnknown):
        return {"kind": "prefix-unknown"}
    form = event_form(message)
    if isinstance(message, Commit):
        if message.logprobs is not None:
            form["logprobs"] = [{"chosen": e.chosen, "top": [list(pair) for pair in e.top]} for e in message.logprobs]
        return {"kind": "commit", "commit": form}
    if isinstance(message, Opened):
        return {"kind": "opened", "opened": form}
    if isinstance(message, Ticket):
        return {"kind": "ticket", "ticket": form}
    if isinstance(message, Advice):
        return {"kind": "advice", "advice": form}
    return {"kind": "pong", "nonce": form}
