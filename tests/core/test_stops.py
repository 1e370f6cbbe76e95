"""Where an answer ends: against a plain search in the whole text, and the two sides against each other."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.stops import StopChecker, StopTextFilter
from pilotfish_core.tokenizer import Tokenizer

END = 256


def build() -> Tokenizer:
    """Bytes as ids 0 to 255 (sorted as GPT-2's table), then an end token and a few longer ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "<end>", "ab", "abab", "ba", "aa"]
    inner = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>"])
    return Tokenizer(inner.to_str().encode())


TOKENIZER = build()
BYTES = {TOKENIZER.token_bytes(token): token for token in range(TOKENIZER.vocab_size)}
LETTERS = [BYTES[piece] for piece in (b"a", b"b", b"ab", b"abab", b"ba", b"aa")]


def ids(*pieces: str) -> list[int]:
    return [BYTES[piece.encode()] for piece in pieces]


def run(params: SamplingParams, tokens: list[int], *, max_output: int | None = None) -> tuple[Finish | None, int, str]:
    """(finish, tokens up to it, text shown), and that no shown piece had to be taken back."""
    checker = StopChecker(params, TOKENIZER, eos_token_ids=[END], max_output=max_output)
    shown = StopTextFilter(params, TOKENIZER, eos_token_ids=[END])
    text = ""
    for count, token in enumerate(tokens, 1):
        finish = checker.push(token)
        text += shown.push(token)
        if finish is not None:
            assert shown.ended is (finish.reason is FinishReason.STOP)
            return finish, count, text + shown.flush()
    return None, len(tokens), text + shown.flush()


STOPS = st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=5), max_size=4)


@given(stop=STOPS, tokens=st.lists(st.sampled_from(LETTERS), max_size=14), least=st.integers(0, 8))
@example(stop=["aa"], tokens=ids("a", "a", "a"), least=3)
@example(stop=["abab", "b"], tokens=ids("ab"), least=0)
def test_equals_a_search_in_the_whole_text(stop: list[str], tokens: list[int], least: int) -> None:
    params = SamplingParams(stop=tuple(stop), min_tokens=least)
    ends = []  # (end, -length, tokens needed) of every occurrence that a late enough token completes
    text = TOKENIZER.decode(tokens)
    for end in range(1, len(text) + 1):
        count = next(c for c in range(1, len(tokens) + 1) if len(TOKENIZER.decode(tokens[:c])) >= end)
        ends += [(end, -len(s), count, s) for s in stop if text[:end].endswith(s) and count >= least]
    finish, count, shown = run(params, tokens)
    if not ends:
        assert (finish, shown) == (None, text)
        return
    end, length, needed, string = min(ends)
    assert finish == Finish(FinishReason.STOP, string)
    assert count == needed
    assert shown == text[: end + length]


@given(stop=STOPS, tokens=st.lists(st.sampled_from(LETTERS), max_size=14))
def test_shown_text_is_never_part_of_the_stop(stop: list[str], tokens: list[int]) -> None:
    shown = StopTextFilter(SamplingParams(stop=tuple(stop)), TOKENIZER)
    text = ""
    for count, token in enumerate(tokens, 1):
        text += shown.push(token)
        whole = TOKENIZER.decode(tokens[:count])
        assert whole.startswith(text)
        if not shown.ended:
            held = whole[len(text) :]
            assert all(s not in text for s in stop)
            assert held == max(
                (s[:n] for s in stop for n in range(len(s)) if whole.endswith(s[:n])), key=len, default=""
            )


def test_a_stop_may_end_inside_a_token() -> None:
    params = SamplingParams(stop=("ba",))
    assert run(params, ids("a", "abab", "b")) == (Finish(FinishReason.STOP, "ba"), 2, "aa")


def test_end_tokens_and_stop_ids() -> None:
    assert run(SamplingParams(), [*ids("a"), END, 5]) == (Finish(FinishReason.STOP, END), 2, "a")
    finish, count, _ = run(SamplingParams(ignore_eos=True), [*ids("a"), END, *ids("b")])
    assert (finish, count) == (None, 3)
    stop = ids("ba")[0]
    params = SamplingParams(stop_token_ids=(stop,), ignore_eos=True)
    assert run(params, ids("a", "ba", "a")) == (Finish(FinishReason.STOP, stop), 2, "a")


def test_min_tokens_lets_ends_pass() -> None:
    params = SamplingParams(stop=("b",), min_tokens=3)
    assert run(params, [*ids("b"), END, *ids("a", "a", "b")]) == (Finish(FinishReason.STOP, "b"), 5, "baa")
    assert run(params, [*ids("a"), END, END]) == (Finish(FinishReason.STOP, END), 3, "a")


def test_length() -> None:
    params = SamplingParams(max_tokens=3, stop=("bb",))
    assert run(params, ids("a", "b", "a", "a")) == (Finish(FinishReason.LENGTH), 3, "aba")
    assert run(params, ids("a", "b", "a"), max_output=2) == (Finish(FinishReason.LENGTH), 2, "ab")
    assert run(params, ids("a", "b", "b")) == (Finish(FinishReason.STOP, "bb"), 3, "a")


def test_a_stop_of_split_characters() -> None:
    params = SamplingParams(stop=("é水",))
    tokens = [BYTES[bytes([byte])] for byte in "xé水".encode()]
    assert run(params, [*tokens, *ids("a")]) == (Finish(FinishReason.STOP, "é水"), len(tokens), "x")
    assert run(params, tokens[:-1]) == (None, len(tokens) - 1, "xé\ufffd")


def test_rules_of_use() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        StopChecker(SamplingParams(stop=("x",)))
    checker = StopChecker(SamplingParams(max_tokens=1))
    assert checker.push(1) == Finish(FinishReason.LENGTH)
    with pytest.raises(ValueError, match="after the end"):
        checker.push(1)
