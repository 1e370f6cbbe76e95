"""Is it worth to learn acceptance by draft position? Tokens a second with a curve over those with one rate.

    python -m benchmarks.acceptance_by_position [--steps 4000]

Rows are chosen as ``Goodput`` does, for 1, 8 and 32 generations, on three slopes of t(rows), from texts that are made
up: equally hard everywhere; in bursts (easy and hard stretches, as real text is); and with an effect of the position
itself, which coupled sampling does not have: all drafts before were the target's, so the context is too. A curve has an
average for each position, shrunk towards the one rate with the weight of eight comparisons.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Final

from pilotfish_core.estimators import Acceptance

CAP: Final = 8
SHRINK: Final = 8.0
HALF_LIFE: Final = 64.0


class OneRate:
    """The j-th token is worth a^j."""

    def __init__(self) -> None:
        self.rate = Acceptance(half_life=HALF_LIFE)

    def observe(self, accepted: int, refuted: bool) -> None:
        self.rate.observe(accepted, refuted=refuted)

    def values(self) -> list[float]:
        return [self.rate.rate**place for place in range(1, CAP + 1)]


class Curve(OneRate):
    """The j-th token is worth the product of the rates at positions 1 to j."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted, self.compared = [0.0] * CAP, [0.0] * CAP

    def observe(self, accepted: int, refuted: bool) -> None:
        super().observe(accepted, refuted)
        keep = 0.5 ** (1 / HALF_LIFE)
        for place in range(min(accepted + refuted, CAP)):
            self.accepted[place] = self.accepted[place] * keep + (place < accepted)
            self.compared[place] = self.compared[place] * keep + 1.0

    def values(self) -> list[float]:
        values, value, prior = [], 1.0, self.rate.rate * SHRINK
        for accepted, compared in zip(self.accepted, self.compared, strict=True):
            value *= (accepted + prior) / (compared + SHRINK)
            values.append(value)
        return values


class Bursts:
    """Easy and hard stretches."""

    def __init__(self, chance: random.Random, easy: float, hard: float, change: float) -> None:
        self.chance, self.rates, self.change, self.now = chance, (easy, hard), change, 0

    def __call__(self, place: int) -> bool:
        if self.chance.random() < self.change:
            self.now = 1 - self.now
        return self.chance.random() < self.rates[self.now]


Text = Callable[[int], bool]  # whether the draft token at this place of a step (from 0) is the target's
TEXTS: Final[dict[str, Callable[[random.Random], Text]]] = {
    "even": lambda chance: lambda place: chance.random() < 0.7,
    "short bursts": lambda chance: Bursts(chance, 0.95, 0.3, 0.08),
    "long bursts": lambda chance: Bursts(chance, 0.98, 0.1, 0.03),
    "falling": lambda chance: lambda place: chance.random() < 0.92 * 0.9**place,
    "first bad": lambda chance: lambda place: chance.random() < (0.92 if place else 0.5),
}


def speed(text: str, count: int, estimator: type[OneRate], per_row: float, steps: int) -> float:
    """Tokens a second; every generation always has ``CAP`` drafts."""
    texts = [TEXTS[text](random.Random(100 + index)) for index in range(count)]
    estimates = [estimator() for _ in range(count)]

    def step_time(rows: int) -> float:
        return 0.03 + per_row * rows

    tokens, seconds = 0, 0.0
    for _ in range(steps):
        valued = sorted(((value, i) for i in range(count) for value in estimates[i].values()), reverse=True)
        best, best_rate, expected = 0, count / step_time(count), float(count)
        for drafts, (value, _) in enumerate(valued, start=1):
            expected += value
            if expected / step_time(count + drafts) > best_rate:
                best, best_rate = drafts, expected / step_time(count + drafts)
        rows = [0] * count
        for _, index in valued[:best]:
            rows[index] += 1
        seconds += step_time(count + best)
        for index in range(count):
            accepted = 0
            while accepted < rows[index] and texts[index](accepted):
                accepted += 1
            tokens += accepted + 1
            if accepted == rows[index] < CAP:  # the target's own token is compared with the next one drafted
                right = texts[index](accepted)
                estimates[index].observe(accepted + right, not right)
            else:
                estimates[index].observe(accepted, accepted < rows[index])
    return tokens / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    given = parser.parse_args()
    slopes = (0.002, 0.006, 0.012)
    print(
        "tokens/s by a curve over those by one rate, at " + " / ".join(f"{slope * 1e3:g}" for slope in slopes), end=""
    )
    print(" ms a row (over half the generations)")
    for text in TEXTS:
        for count in (1, 8, 32):
            ratios = []
            for slope in slopes:
                per_row, steps = slope / max(1.0, count / 2), given.steps // count + 300
                speeds = [speed(text, count, kind, per_row, steps) for kind in (Curve, OneRate)]
                ratios.append(f"{speeds[0] / speeds[1]:.3f}")
            print(f"{text:<13} {count:>2} generations   " + "  ".join(ratios))


if __name__ == "__main__":
    main()
