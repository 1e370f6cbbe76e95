"""How long a step of the target takes: learned from steps, and before the first from what was measured at start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pilotfish_core.averages import Average

EXACT: Final = 16  # row counts up to here have an average each, larger ones share one with their like
OUTLIER: Final = 3.0  # times what is expected: a single observation counts for no more
STRANGE: Final = 3  # in a row that are so far off are no accident
FORGOTTEN: Final = 2048  # steps after which a row count that did not come up again is not known any more
SLOPE_KEEP: Final = 0.95  # of what is known of contexts, when something new is
CONTEXT_SHARE: Final = 0.7  # of a step's time at most is its context's
JUMP: Final = 0.5  # share of a step's time: what changes it by more is not the context
SLOPE_PRIOR: Final = 1e6  # square tokens: contexts must have varied by more before they are believed to cost anything
TELLING: Final = 0.25  # share by which a context must differ from the average to say what contexts cost
DRIFT: Final = 0.02  # share by which an average may move before the curve is made anew


class Load(NamedTuple):
    """What a step computes, beside its rows: ``context``, the KV tokens that its attention reads, summed over
    sequences; ``pairs``, the same summed over rows. Memory-bound attention costs by the first, compute-bound by the
    second.
    """

    context: int = 0
    pairs: int = 0


class _Bucket:
    """Averages of steps of about equally many rows."""

    def __init__(self, gain: float) -> None:
        self.rows, self.time, self.context, self.pairs = (Average(gain) for _ in range(4))
        self.anchor: tuple[float, float, float] | None = (
            None  # time, context and pairs that what comes is compared with
        )
        self.strange = 0  # observations in a row that were far off
        self.seen = 0  # the last step it came up in
        self.used = 0.0  # its time when the curve was made


class StepTime:
    """t(rows, context, pairs) = f(rows) + g context + h pairs; see ``Load``. Seconds.

    f goes through the averages at the row counts seen, joined by straight lines, or in stairs where the engine pads its
    rows; it never falls: where a larger step was seen to be faster (noise), both count as one (isotonic regression). g
    and h, never negative, are what the time changes by with the context among steps of as many rows (least squares over
    comparisons within these groups, so that more sequences with more context each are not mistaken for dear rows),
    shrunk towards nothing until contexts have varied. A single step counts for at most three times what was expected;
    the third such one in a row is believed. Row counts that do not come up any more are forgotten, so that a machine
    that has become faster is found out.
    """

    def __init__(self, *, gain: float = 0.1, row_sizes: Sequence[int] = ()) -> None:
        """``row_sizes`` (ascending): row counts to which steps are padded; all that one stands for cost the same."""
        self._gain = gain
        self._row_sizes = np.array(row_sizes, dtype=np.int64)
        self._buckets: dict[int, _Bucket] = {}
        self._steps = 0
        self._noise = Average(gain / 2)  # mean deviation of a step from the average, a share
        # Sums over comparisons within the groups: context^2, context x pairs, pairs^2, context x time, pairs x time.
        self._sums = np.zeros(5)
        self._stale = True
        self._base: NDArray[np.float64] = np.empty(0)
        self._list: list[float] = []
        self.version = 0  # changes with the curve
        self.per_context = 0.0  # g, seconds a token
        self.per_pair = 0.0  # h

    def observe(self, rows: int, duration: float, load: Load | None = None) -> None:
        """A step of ``rows`` took ``duration``. Steps whose load is not known count as of none."""
        context, pairs = load or Load()
        self._steps += 1
        rows, key = self._padded(rows), self._key(rows)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._gain)
            self._stale = True
        elif bucket.time.count > 1 and bucket.time.value is not None:
            expected = bucket.time.value
            far = not expected / OUTLIER <= duration <= expected * OUTLIER
            bucket.strange = bucket.strange + 1 if far else 0
            if bucket.strange >= STRANGE:
                bucket = self._buckets[key] = _Bucket(self._gain)
                expected, self._stale = duration, True
            duration = min(duration, OUTLIER * expected)
            self._noise.observe(abs(duration - expected) / expected)
        bucket.rows.observe(rows)
        bucket.time.observe(duration)
        bucket.context.observe(context)
        bucket.pairs.observe(pairs)
        bucket.seen = self._steps
        self._learn_slopes(bucket)
        if abs(bucket.time.or_else(0.0) - bucket.used) > DRIFT * bucket.used:
            self._stale = True
        if self._steps % FORGOTTEN == 0:
            self._forget()

    @property
    def known(self) -> bool:
        """Whether any step was seen."""
        return bool(self._buckets)

    def of(self, rows: int, load: Load | None = None) -> float:
        """Seconds of a step of ``rows``. Beyond the most that was seen, as the upper half of the curve goes on (flat
        from one point). Raises ValueError before the first observation.
        """
        if self._stale or rows >= len(self._list):
            self._make(rows)
        base = self._list[rows]
        return base if load is None else base + self.per_context * load.context + self.per_pair * load.pairs

    def base(self, most: int) -> NDArray[np.float64]:
        """f(0) to f(most) at least, for whoever needs many: not to be changed. Raises ValueError as ``of``."""
        if self._stale or most >= len(self._list):
            self._make(most)
        return self._base

    @property
    def most(self) -> int:
        """The most rows of a step that was seen; 0 before the first."""
        return max(self._buckets, default=0)

    def unseen(self, rows: int) -> int:
        """Steps since one of about so many rows; 0 when there never was one."""
        bucket = self._buckets.get(self._key(rows))
        return 0 if bucket is None else self._steps - bucket.seen

    def doubt(self, rows: int) -> float:
        """How far off f may be at ``rows`` by the noise of single steps, a share; 0 where no step was seen."""
        bucket = self._buckets.get(self._key(rows))
        return 0.0 if bucket is None else self._noise.or_else(0.0) / math.sqrt(min(bucket.time.count, 2 / self._gain))

    def _learn_slopes(self, bucket: _Bucket) -> None:
        """Compare the averages with what they were before the context had changed by a good deal."""
        now = bucket.time.or_else(0.0), bucket.context.or_else(0.0), bucket.pairs.or_else(0.0)
        if bucket.anchor is None:
            bucket.anchor = now
            return
        late, more, wider = (new - old for new, old in zip(now, bucket.anchor, strict=True))
        if abs(more) <= TELLING * bucket.anchor[1] and abs(wider) <= TELLING * bucket.anchor[2]:
            return
        if abs(late) <= JUMP * bucket.anchor[0]:
            comparison = np.array([more * more, more * wider, wider * wider, more * late, wider * late])
            self._sums = self._sums * SLOPE_KEEP + comparison
        bucket.anchor = now

    def _slopes(self) -> tuple[float, float]:
        """g and h: least squares with both at least 0, and no more than any of the averages leaves room for."""
        xx, xy, yy, xt, yt = (float(value) for value in self._sums)
        xx, yy = xx + SLOPE_PRIOR, yy + SLOPE_PRIOR
        determinant = xx * yy - xy * xy
        g, h = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
        if g < 0.0:
            g, h = 0.0, max(yt / yy, 0.0)
        elif h < 0.0:
            g, h = max(xt / xx, 0.0), 0.0
        share = CONTEXT_SHARE
        for bucket in self._buckets.values():
            cost = g * bucket.context.or_else(0.0) + h * bucket.pairs.or_else(0.0)
            share = max(share, cost / bucket.time.or_else(cost) if cost else 0.0)
        return g * CONTEXT_SHARE / share, h * CONTEXT_SHARE / share

    def _make(self, most: int) -> None:
        """Make the curve anew, as a table of the times of 0 to ``most`` rows and some more."""
        if not self._buckets:
            raise ValueError("no step was observed yet")
        self.per_context, self.per_pair = self._slopes()
        curve = self._monotone()
        size = max(most + 1, 2 * len(self._list) if most >= len(self._list) else len(self._list), 64)
        known, times = np.array(curve).T
        counts = np.arange(size)
        if self._row_sizes.size:
            places = np.searchsorted(self._row_sizes, counts)
            within = places < self._row_sizes.size
            counts[within] = self._row_sizes[places[within]]
        rows = counts.astype(np.float64)
        table = np.interp(rows, known, times)
        last = float(known[-1])
        if len(curve) > 1 and last < rows[-1]:
            low = max(int(np.searchsorted(known, last / 2, side="right")) - 1, 0)
            slope = (times[-1] - times[low]) / (last - known[low])
            beyond = rows > last
            table[beyond] = times[-1] + slope * (rows[beyond] - last)
        self._base, self._list = table, table.tolist()
        self._stale = False
        self.version += 1

    def _monotone(self) -> list[tuple[float, float]]:
        """Pool adjacent violators, weighted by the observations that an average stands for."""
        pools: list[list[float]] = []  # [time x weight, weight, first rows, last rows]
        for _, bucket in sorted(self._buckets.items()):
            bucket.used = time = bucket.time.or_else(0.0)
            weight = min(bucket.time.count, 1 / self._gain)
            rows = bucket.rows.or_else(0.0)
            context = self.per_context * bucket.context.or_else(0.0) + self.per_pair * bucket.pairs.or_else(0.0)
            pools.append([(time - context) * weight, weight, rows, rows])
            while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
                time, weight, _first, last = pools.pop()
                pools[-1][0] += time
                pools[-1][1] += weight
                pools[-1][3] = last
        curve: list[tuple[float, float]] = []
        for time, weight, first, last in pools:
            curve.append((first, time / weight))
            if last > first:
                curve.append((last, time / weight))
        return curve

    def _forget(self) -> None:
        known = {key: bucket for key, bucket in self._buckets.items() if self._steps - bucket.seen < FORGOTTEN}
        if len(known) != len(self._buckets):
            self._buckets, self._stale = known, True

    def _padded(self, rows: int) -> int:
        place = int(np.searchsorted(self._row_sizes, rows))
        return rows if place == self._row_sizes.size else int(self._row_sizes[place])

    def _key(self, rows: int) -> int:
        """Each size to which steps are padded; else each up to ``EXACT``, then eight groups an octave."""
        padded = int(self._row_sizes[-1]) if self._row_sizes.size else 0
        if rows <= padded:
            return self._padded(rows)
        if rows <= EXACT:
            return rows
        shift = rows.bit_length() - 4
        return max(rows >> shift << shift, padded + 1)  # a group begins no earlier than where the padding ends
