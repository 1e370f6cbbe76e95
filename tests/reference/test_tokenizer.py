"""The tokenizer loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from reference.tokenizer import (
    END_TOKEN,
    END_TOKEN_ID,
    VOCAB_SIZE,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

TEXTS = ["def square(x):\n    return x * x\n", "for item in items:\n    print(item)\n"] * 20
SMALL = train_tokenizer(TEXTS, vocab_size=300)
SHIPPED = Path(__file__).resolve().parents[2] / "reference" / "target"


@given(st.text().filter(lambda text: END_TOKEN not in text))
def test_round_trip(text: str) -> None:
    ids = SMALL.encode(text, add_special_tokens=False).ids
    assert SMALL.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("folder", ["target", "draft"])
def test_shipped_tokenizer(folder: str) -> None:
    tokenizer = load_tokenizer(SHIPPED.parent / folder)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert tokenizer.token_to_id(END_TOKEN) == END_TOKEN_ID
    for text in (*TEXTS[:2], "naïve 試験 \U0001f41f\x00\r\n\t  ", "x = 1234"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_both_sides_share_one_tokenizer() -> None:
    first, second = (SHIPPED.parent / name / "tokenizer.json" for name in ("target", "draft"))
    assert first.read_bytes() == second.read_bytes()


def test_save_and_load(tmp_path: Path) -> None:
    save_tokenizer(SMALL, tmp_path / "new")
    loaded: Tokenizer = load_tokenizer(tmp_path / "new")
    assert loaded.encode(TEXTS[0]).ids == SMALL.encode(TEXTS[0]).ids
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
