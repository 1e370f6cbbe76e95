"""What the exactness benchmark varies, and a small design in which every pair of choices meets at least once."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pilotfish_core.parameters import SamplingParams

Pair = tuple[tuple[str, Any], tuple[str, Any]]  # two (factor, level)

SAMPLINGS: Final[Mapping[str, SamplingParams]] = {
    "T 0": SamplingParams(temperature=0.0),
    "T 0.8 top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "T 1": SamplingParams(temperature=1.0),
}
ORACLES: Final[Mapping[str, float]] = {"oracle": 1.0, "oracle 0.6": 0.6}  # accuracy of a token
FACTORS: Final[Mapping[str, Sequence[Any]]] = {
    "draft": ("onnx int8", "ngram", "junk", *ORACLES),
    "window": (1, 4, 8, 32),
    "sampling": tuple(SAMPLINGS),
    "batch": (1, 8),
    "resume": (False, True),
    "dtype": ("float32", "bfloat16"),
    "cache": ("cold", "warm"),
}
_TRIES: Final = 40  # designs of which the shortest is taken
_CANDIDATES: Final = 20  # rows of which the one that covers most is taken


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration.

    ``batch``: generations at once on each verifier. ``resume``: each answer is cancelled at a random token and goes on
    in the other process. ``cache``: verifiers just started, or ones that have seen every prompt before.
    """

    draft: str
    window: int
    sampling: str
    batch: int
    resume: bool
    dtype: str
    cache: str
    deterministic: bool = True

    @property
    def key(self) -> str:
        """Names it in files and on the screen."""
        parts = [self.dtype, self.sampling, self.draft, f"window {self.window}", f"{self.batch} at once"]
        parts += ["resumed"] * self.resume + [f"{self.cache} cache"] + ["normal mode"] * (not self.deterministic)
        return ", ".join(parts)


def pairs_of(row: Mapping[str, Any]) -> set[Pair]:
    """The pairs of levels that a row brings together."""
    return set(itertools.combinations(sorted(row.items()), 2))


def all_pairs(factors: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Every pair of levels of two factors."""
    found: set[Pair] = set()
    for first, second in itertools.combinations(sorted(factors), 2):
        found |= {((first, a), (second, b)) for a in factors[first] for b in factors[second]}
    return found


def pairwise(factors: Mapping[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """Rows that cover all pairs: greedy, the shortest of several seeded tries."""
    rng = random.Random(seed)
    sizes = sorted((len(levels) for levels in factors.values()), reverse=True)
    shortest = sizes[0] * sizes[1]  # no design has fewer rows
    best = _greedy(factors, rng)
    for _ in range(_TRIES):
        if len(best) == shortest:
            break
        best = min(best, _greedy(factors, rng), key=len)
    return best


def missing_pairs(rows: Sequence[Mapping[str, Any]], factors: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Pairs that no row covers; empty for a complete design."""
    names = set(factors)
    covered = (pairs_of({name: level for name, level in row.items() if name in names}) for row in rows)
    return all_pairs(factors).difference(*covered)


def design(factors: Mapping[str, Sequence[Any]], seed: int) -> list[Cell]:
    """A pairwise design as cells, those that share verifiers next to each other."""
    cells = [Cell(**row) for row in pairwise(factors, seed)]
    return sorted(cells, key=lambda cell: (cell.dtype != "float32", cell.cache == "cold", cell.key))


def normal_cells(dtypes: Sequence[str], samplings: Sequence[str]) -> list[Cell]:
    """Normal mode: what batches of eight and drafts do to the text there."""
    drafts = (("none", 8, "warm"), ("oracle", 8, "warm"), ("onnx int8", 1, "warm"), ("onnx int8", 8, "cold"))
    cells = [
        Cell(
            draft=draft,
            window=8,
            sampling=sampling,
            batch=batch,
            resume=False,
            dtype=dtype,
            cache=cache,
            deterministic=False,
        )
        for dtype in dtypes
        for sampling in samplings
        for draft, batch, cache in drafts
    ]
    return sorted(cells, key=lambda cell: (cell.dtype != "float32", cell.cache == "cold"))


def _greedy(factors: Mapping[str, Sequence[Any]], rng: random.Random) -> list[dict[str, Any]]:
    left, rows = all_pairs(factors), list[dict[str, Any]]()
    while left:
        ordered = sorted(left, key=repr)
        candidates = [_row(factors, left, rng.choice(ordered), rng) for _ in range(_CANDIDATES)]
        best = max(candidates, key=lambda row: len(pairs_of(row) & left))
        left -= pairs_of(best)
        rows.append(best)
    return rows


def _row(factors: Mapping[str, Sequence[Any]], left: set[Pair], begin: Pair, rng: random.Random) -> dict[str, Any]:
    """A row that covers ``begin``, each further level chosen for the uncovered pairs it makes with those before."""
    row: dict[str, Any] = dict(begin)
    rest = [name for name in factors if name not in row]
    rng.shuffle(rest)
    for name in rest:
        levels = rng.sample(list(factors[name]), len(factors[name]))
        gains = [len(pairs_of({**row, name: level}) & left) for level in levels]
        row[name] = levels[gains.index(max(gains))]
    return row
