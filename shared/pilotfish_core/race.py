"""The best of (logit + noise) among many tokens, exactly, while making noise for few; and the selections it needs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pilotfish_core.noise import GUMBEL_MAX, Floats, Ids, Words, gumbel_of_words, least_word, words_at, words_row

Logits = NDArray[Any]  # [vocabulary], float32 or float64

SMALL: Final = 1024  # sets up to this size are scored or sorted outright
ROUNDING: Final = 1e-9  # nats: covers the rounding of scores where bounds are compared; never decides a result


class Race:
    """Finds the best of ``scaled + G`` among tokens without making noise for those that cannot win.

    A few likely tokens run first. Their best score so far bounds the rest twice: a token whose logit could not win
    even with the greatest variate needs no word, and a word too small for the best remaining logit needs no
    logarithm. Both bounds are exact.
    """

    def __init__(self, temperature: float, top: float, seed: int, position: int) -> None:
        self.temperature, self.top, self.seed, self.position = temperature, top, seed, position

    def best(self, ids: Ids | None, values: Logits, count: int) -> Ids:
        """Ids of the ``count`` best, best first. ``ids`` (None: all) ascend; ``values`` are their adjusted logits."""
        if values.size <= SMALL:
            tokens: Ids = np.arange(values.size) if ids is None else ids
            scores = self._scores(tokens, values)
        else:
            tokens, scores = self._contenders(ids, values, count)
        order = np.lexsort((tokens, -scores))[:count]
        return tokens[order[scores[order] > -np.inf]]

    def scaled(self, values: Logits) -> Floats:
        """Scaled logits of adjusted ones, float64."""
        return scaled_logits(values, self.top, self.temperature)

    def floor_of(self, scaled: float, dtype: np.dtype[Any]) -> Any:
        """A finite adjusted logit, in ``dtype``, that everything at or above ``scaled`` reaches; errs low."""
        offset = self.temperature * scaled
        value = self.top + offset - 1e-12 * (abs(self.top) + abs(offset))
        limits = np.finfo(dtype)
        clipped = dtype.type(min(max(value, float(limits.min)), float(limits.max)))
        return max(np.nextafter(clipped, dtype.type(-np.inf)), limits.min)

    def _scores(self, tokens: Ids, values: Logits) -> Floats:
        return self.scaled(values) + gumbel_of_words(words_at(self.seed, self.position, tokens))

    def _contenders(self, ids: Ids | None, values: Logits, count: int) -> tuple[Ids, Floats]:
        """Tokens, and their scores, of a set that surely holds the ``count`` best."""
        level = level_of(values, max(SMALL // 4, 2 * count), spare=0)
        head = np.flatnonzero(values >= level)
        few = max(SMALL // 2, count)
        flat = not count <= head.size <= 4 * SMALL
        if flat:  # any few will do for a first bound
            head, level = np.flatnonzero(values[:few] > -np.inf), values.dtype.type(self.top)
        tokens = head if ids is None else ids[head]
        scores = self._scores(tokens, values[head])
        if head.size < count:
            tokens = np.arange(values.size) if ids is None else ids
            return tokens, self._scores(tokens, values)
        bound = float(np.partition(scores, head.size - count)[head.size - count])
        bound -= ROUNDING * (1.0 + abs(bound))
        floor = self.floor_of(bound - GUMBEL_MAX, values.dtype)
        rest, words = self._words_from(floor, ids, values)
        # What is not in the head lies at or below ``level``, so it needs at least this word.
        hits = np.flatnonzero(words >= least_word(bound - float(self.scaled(np.asarray([level]))[0])))
        words = words[hits]
        hits = hits if rest is None else rest[hits]
        held = values[hits]
        chosen = (held >= floor) & ((hits >= few) if flat else (held < level))
        hits, words, held = hits[chosen], words[chosen], held[chosen]
        tokens = np.concatenate([tokens, hits if ids is None else ids[hits]])
        return tokens, np.concatenate([scores, self.scaled(held) + gumbel_of_words(words)])

    def _words_from(self, floor: Any, ids: Ids | None, values: Logits) -> tuple[Ids | None, Words]:
        """Indices (None: all) of at least all values that reach ``floor``, and their words."""
        reach = values >= floor
        if 2 * int(np.count_nonzero(reach)) > values.size:
            if ids is None:
                return None, words_row(self.seed, self.position, values.size)
            return None, words_at(self.seed, self.position, ids)
        rest = np.flatnonzero(reach)
        return rest, words_at(self.seed, self.position, rest if ids is None else ids[rest])


def scaled_logits(values: Logits, top: float, temperature: float) -> Floats:
    """``(values - top) / temperature`` in float64; a tiny temperature may send far tokens to -inf."""
    with np.errstate(over="ignore"):
        result: Floats = np.subtract(values, top, dtype=np.float64)
        result /= temperature
    return result


def largest(values: Logits, count: int) -> Ids:
    """Indices (ascending) of the ``count`` largest; of equals at the boundary those with the lowest index."""
    if count >= values.size:
        return np.arange(values.size)
    pool: Ids = np.flatnonzero(values >= level_of(values, count))
    if pool.size < count:
        pool = np.arange(values.size)
    held = values[pool]
    least = np.partition(held, held.size - count)[held.size - count]
    above = np.flatnonzero(held > least)
    equal = np.flatnonzero(held == least)[: count - above.size]
    picks: Ids = pool[np.sort(np.concatenate([above, equal]))]
    return picks


def level_of(values: Logits, count: int, spare: int = 8) -> Any:
    """A finite value that probably ``count`` reach, guessed from a sample; ``spare`` sampled ones make it surer."""
    stride = max(1, values.size // 2048)
    sample = values[::stride]
    rank = min(sample.size, 2 * count // stride + 1 + spare)
    level = np.partition(sample, sample.size - rank)[sample.size - rank]
    return max(level, np.finfo(values.dtype).min)
