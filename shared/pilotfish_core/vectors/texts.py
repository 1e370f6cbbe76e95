"""Text in and out: ids, decoding, stop strings and n-gram drafts of one tokenizer, for other languages."""

from __future__ import annotations

import random
from typing import Any, Final

from pilotfish_core.ngram import NgramDrafter
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import prefixes
from pilotfish_core.stops import StopChecker, StopTextFilter
from pilotfish_core.tokenizer import Tokenizer

CASES: Final = 300
_PIECES: Final = (
    "def quicksort(items):\n    ", "return ", "self.", " = [1, 2.5, 'x']", "\t", "  ", "\r\n", "äöüß", "日本語",
    "😀\U0001f469\u200d\U0001f467", "é", "e\u0301", "\u200b", "\ufeff", "#!", "0x1F", "__init__", "\u00a0", "\u0085",
    "\u2028", "'''", "λ x: x", "\\n", "%", "END", "ING",
)  # fmt: skip


def text_vectors(tokenizer: Tokenizer, count: int = CASES) -> dict[str, Any]:
    """Every case by its own random numbers."""
    return {
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "encode": [_encoded(tokenizer, random.Random(f"encode {number}")) for number in range(count)],
        "decode": [_decoded(tokenizer, random.Random(f"decode {number}")) for number in range(count)],
        "stops": [_stopped(tokenizer, random.Random(f"stop {number}")) for number in range(count)],
        "ngram": [_drafted(random.Random(f"ngram {number}")) for number in range(count // 3)],
        "prefixes": [_named(random.Random(f"prefix {number}")) for number in range(20)],
    }


def _text(chance: random.Random) -> str:
    return "".join(chance.choice(_PIECES) for _ in range(chance.randrange(1, 12)))


def _encoded(tokenizer: Tokenizer, chance: random.Random) -> dict[str, Any]:
    text = _text(chance)
    return {"text": text, "ids": tokenizer.encode(text)}


def _decoded(tokenizer: Tokenizer, chance: random.Random) -> dict[str, Any]:
    """Random ids: most of what they say is no proper UTF-8."""
    ids = [chance.randrange(tokenizer.vocab_size + 3) for _ in range(chance.randrange(1, 20))]
    return {"ids": ids, "text": tokenizer.decode(ids), "continues": tokenizer.decode(ids, continues=True)}


def _stopped(tokenizer: Tokenizer, chance: random.Random) -> dict[str, Any]:
    ids = tokenizer.encode(_text(chance) + _text(chance))
    stop = tuple({chance.choice(("END", "ING", "\n", "😀", "self.__", "xyz", ": x", "日本語x")) for _ in range(2)})
    values: dict[str, Any] = {"stop": list(stop), "max_tokens": chance.choice((5, 500)), "min_tokens": 0}
    values["min_tokens"] = min(chance.choice((0, 0, 8)), values["max_tokens"])
    values["stop_token_ids"] = [ids[-1]] if chance.random() < 0.3 else []
    params = SamplingParams.from_mapping({**values, "seed": 1})
    checker, shown = StopChecker(params, tokenizer, eos_token_ids=(0,)), StopTextFilter(params, tokenizer)
    end: list[Any] | None = None
    for index, token in enumerate(ids):
        finish = checker.push(token)
        if finish is not None:
            end = [index, finish.reason.value, finish.stop]
            break
    return {"ids": ids, **values, "end": end, "shown": [shown.push(token) for token in ids] + [shown.flush()]}


def _drafted(chance: random.Random) -> list[dict[str, Any]]:
    """Tasks of one context."""
    context, held = NgramDrafter().open(SamplingParams(), 0), list[int]()
    tasks = []
    for _ in range(12):
        keep = chance.randrange(len(held) + 1)
        extend = [chance.randrange(4) for _ in range(chance.randrange(12))]
        context.rewind(keep)
        context.extend(extend)
        count = chance.randrange(6)
        tokens = context.draft(count)
        held = [*held[:keep], *extend, *tokens]
        tasks.append({"keep": keep, "extend": extend, "count": count, "tokens": tokens})
    return tasks


def _named(chance: random.Random) -> dict[str, Any]:
    tokens = [chance.randrange(2**31) for _ in range(chance.randrange(1, 80))]
    return {"tokens": tokens, "prefixes": [[prefix.digest.hex(), prefix.length] for prefix in prefixes(tokens)]}
