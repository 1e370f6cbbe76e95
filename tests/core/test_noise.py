import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core import vectors
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.noise import (
    GUMBEL_MAX,
    GUMBEL_MIN,
    derive_seed,
    gumbel_at,
    gumbel_of_words,
    gumbel_row,
    least_word,
    philox_block,
    philox_blocks,
    split64,
    words_at,
    words_row,
)

word32 = st.integers(0, 2**32 - 1)
word64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """kat_vectors of Random123, philox4x32 10."""
    assert philox_block(counter, key) == expected
    first = np.array([counter[0]] * 3, dtype=np.uint64)
    assert philox_blocks(first, counter[1:], key).tolist() == [list(expected)] * 3


@given(st.lists(word32, min_size=1, max_size=9), st.tuples(word32, word32, word32), st.tuples(word32, word32))
def test_vectorised_philox_equals_the_plain_one(
    first: list[int], rest: tuple[int, int, int], key: tuple[int, int]
) -> None:
    words = philox_blocks(np.array(first, dtype=np.uint64), rest, key)
    assert [tuple(row) for row in words.tolist()] == [philox_block((c0, *rest), key) for c0 in first]


def test_pieces_do_not_show() -> None:
    size = 151_936
    row = words_row(5, 9, size)
    for block in (0, 12_661, 12_662, 25_323, 37_983):
        assert tuple(row[4 * block : 4 * block + 4].tolist()) == philox_block((block, 9, 0, 0), (5, 0))


@given(word64, word64, st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_ids_and_rows_agree(seed: int, position: int, ids: list[int]) -> None:
    array = np.array(ids, dtype=np.int64)
    row = words_row(seed, position, 5001)
    assert row.dtype == np.uint32
    assert np.array_equal(words_at(seed, position, array), row[array])
    assert np.array_equal(gumbel_at(seed, position, array), gumbel_row(seed, position, 5001)[array])


def test_many_ids_take_the_row_and_agree() -> None:
    ids = np.arange(4000, 0, -3, dtype=np.int64)
    assert np.array_equal(words_at(3, 4, ids), words_row(3, 4, 4001)[ids])
    assert words_at(3, 4, np.empty(0, dtype=np.int64)).size == 0


def test_all_bits_of_seed_and_position_matter() -> None:
    base = words_row(1, 1, 8).tolist()
    others = [words_row(1 | 1 << bit, 1, 8).tolist() for bit in range(1, 64)]
    others += [words_row(1, 1 | 1 << bit, 8).tolist() for bit in range(1, 64)]
    assert all(other != base for other in others)
    assert len({tuple(other) for other in others}) == len(others)


def test_variates_lie_in_the_stated_range() -> None:
    ends = gumbel_of_words(np.array([0, 2**32 - 1], dtype=np.uint32))
    assert ends.tolist() == pytest.approx([GUMBEL_MIN, GUMBEL_MAX], rel=1e-12)
    assert -3.2 < GUMBEL_MIN < GUMBEL_MAX < 22.9


def test_variates_are_standard_gumbel() -> None:
    sample = np.concatenate([gumbel_row(11, position, 10_000) for position in range(20)])
    assert sample.mean() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert sample.var() == pytest.approx(math.pi**2 / 6, abs=0.02)


@given(word32)
def test_least_word_never_excludes_a_variate_that_reaches_the_bound(word: int) -> None:
    variate = float(gumbel_of_words(np.array([word], dtype=np.uint32))[0])
    assert least_word(variate) <= word
    assert least_word(variate) >= word - 16 or least_word(variate) == 0


def test_derived_seeds_differ_and_the_first_is_the_seed_itself() -> None:
    seeds = [derive_seed(99, index) for index in range(200)]
    assert seeds[0] == 99
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**64 for seed in seeds)
    low, high, *_ = philox_block((3, 0, 0, 1), (99, 0))
    assert seeds[3] == low | high << 32


@pytest.mark.parametrize("value", [-1, 2**64])
def test_numbers_beyond_64_bits_are_refused(value: int) -> None:
    with pytest.raises(InvalidParameter, match="seed"):
        words_row(value, 0, 4)
    with pytest.raises(InvalidParameter, match="position"):
        words_row(0, value, 4)
    with pytest.raises(InvalidParameter):
        derive_seed(value, 0)
    with pytest.raises(InvalidParameter):
        split64("x", value)


def test_vectors_file_is_what_the_code_gives() -> None:
    text = vectors.PATH.read_text(encoding="utf-8")
    assert len(text.encode()) < 100_000
    held, built = json.loads(text), json.loads(vectors.dumps(vectors.build()))
    assert held.keys() == built.keys()
    for mine, theirs in zip(built["noise"], held["noise"], strict=True):
        assert mine["gumbel"] == pytest.approx(theirs.pop("gumbel"), rel=1e-12)
        del mine["gumbel"]
    for mine, theirs in zip(built["gumbel_of_words"], held["gumbel_of_words"], strict=True):
        assert mine["gumbel"] == pytest.approx(theirs["gumbel"], rel=1e-12)
        theirs["gumbel"] = mine["gumbel"]
    for mine, theirs in zip(built["sampling"], held["sampling"], strict=True):
        assert mine["logprob"] == pytest.approx(theirs["logprob"], rel=1e-9)
        for (token, value), (their_token, their_value) in zip(
            mine["top_logprobs"], theirs["top_logprobs"], strict=True
        ):
            assert token == their_token
            assert value == pytest.approx(their_value, rel=1e-9)
        for name in ("logprob", "top_logprobs"):
            del mine[name], theirs[name]
    assert built == held
