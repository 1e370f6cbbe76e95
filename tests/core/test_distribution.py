"""That coupled sampling draws from the target's distribution, and that drafts under the same noise match it often.

All seeds are fixed, so a test passes always or never. Draws are vectorised over positions: the arg-max of
``filtered_logits`` plus noise, which ``test_sampling`` shows to be what ``coupled_token`` returns (and the first
draws are compared here again).
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pilotfish_core.noise import gumbel_of_words, philox_block, split64
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_token, filtered_logits

Floats = NDArray[np.float64]
DRAWS = 200_000
LOGITS = np.array([2.0, 1.5, 1.5, 0.3, 0.0, -0.4, -1.0, 1.1, -2.0, 0.7])
HISTORY = TokenHistory([0, 1, 4], [2, 2, 7])


def noise(seed: int, positions: range, vocab: int) -> Floats:
    """Gumbel variates ``[positions, vocab]``; the plain Philox works on arrays as it does on integers."""
    block: Any = philox_block
    times = np.arange(positions.start, positions.stop, dtype=np.uint64)
    high = times >> np.uint64(32)
    columns = []
    for first in range(-(-vocab // 4)):
        start = np.full_like(times, first)
        columns += list(block((start, times & np.uint64(2**32 - 1), high, np.uint64(0)), split64("seed", seed)))
    return gumbel_of_words(np.stack(columns, axis=1)[:, :vocab].astype(np.uint32))


def draw(filtered: Floats, seed: int = 12345, start: int = 0, count: int = DRAWS) -> NDArray[np.int64]:
    scores = filtered + noise(seed, range(start, start + count), filtered.size)
    result: NDArray[np.int64] = scores.argmax(axis=1)
    return result


def softmax(filtered: Floats) -> Floats:
    weights = np.exp(filtered - filtered.max())
    result: Floats = weights / weights.sum()
    return result


def p_value(draws: NDArray[np.int64], probabilities: Floats) -> float:
    """Chi-square goodness of fit; a draw that the distribution excludes is proof against it."""
    counts = np.bincount(draws, minlength=probabilities.size)
    possible = probabilities > 0
    if counts[~possible].any():
        return 0.0
    if possible.sum() == 1:
        return 1.0
    return float(stats.chisquare(counts[possible], probabilities[possible] * draws.size).pvalue)


CASES = {
    "none": SamplingParams(),
    "temperature low": SamplingParams(temperature=0.6),
    "temperature high": SamplingParams(temperature=3.0),
    "top_k": SamplingParams(top_k=4),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.2),
    "all filters": SamplingParams(temperature=1.3, top_k=8, top_p=0.93, min_p=0.05),
    "repetition": SamplingParams(repetition_penalty=1.5),
    "presence": SamplingParams(presence_penalty=1.0),
    "frequency": SamplingParams(frequency_penalty=0.7),
    "bias": SamplingParams(logit_bias=((5, 2.0), (0, -1.0))),
}


def expected_distribution(params: SamplingParams) -> Floats:
    """The target's distribution written out independently of the sampler."""
    logits = LOGITS.copy()
    for token, bias in params.logit_bias:
        logits[token] += bias
    for token in (0, 1, 2, 4, 7):
        logits[token] *= params.repetition_penalty if logits[token] < 0 else 1 / params.repetition_penalty
    for token, count in ((2, 2), (7, 1)):
        logits[token] -= params.presence_penalty + params.frequency_penalty * count
    probabilities = softmax(logits / params.temperature)
    probabilities[probabilities < params.min_p * probabilities.max()] = 0.0
    ranked = sorted(range(logits.size), key=lambda token: (-probabilities[token], token))
    if params.top_k:
        probabilities[ranked[params.top_k :]] = 0.0
    probabilities /= probabilities.sum()
    mass = 0.0
    for token in ranked:
        if mass >= params.top_p:
            probabilities[token] = 0.0
        mass += probabilities[token]
    result: Floats = probabilities / probabilities.sum()
    return result


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_filtered_distribution(name: str) -> None:
    params = CASES[name]
    filtered = filtered_logits(LOGITS, params, history=HISTORY)
    draws = draw(filtered)
    assert p_value(draws, expected_distribution(params)) > 1e-3
    for position in range(50):
        assert draws[position] == coupled_token(LOGITS, params, position, seed=12345, history=HISTORY)


def test_draws_over_seeds_follow_the_distribution_too() -> None:
    """One position under 100,000 consecutive seeds: the key must mix as well as the counter."""
    block: Any = philox_block
    seeds = np.arange(100_000, dtype=np.uint64)
    words = [block((first, 3, 0, 0), (seeds, np.zeros_like(seeds))) for first in range(3)]
    variates = gumbel_of_words(np.concatenate(words).T[:, : LOGITS.size].astype(np.uint32))
    draws = (LOGITS + variates).argmax(axis=1)
    assert p_value(draws, softmax(LOGITS)) > 1e-3
    assert draws[7] == coupled_token(LOGITS, SamplingParams(seed=7), 3)


@pytest.mark.parametrize("distance", [1, 2, 2**32])
def test_positions_are_independent(distance: int) -> None:
    p = softmax(LOGITS)
    first, second = draw(LOGITS), draw(LOGITS, start=distance)
    if distance < DRAWS:  # every other pair would share a draw
        keep = (np.arange(DRAWS) // distance) % 2 == 0
        first, second = first[keep], second[keep]
    assert p_value(first * p.size + second, np.outer(p, p).ravel()) > 1e-3


def test_neighbouring_seeds_are_independent() -> None:
    p = softmax(LOGITS)
    first, second = draw(LOGITS, seed=8), draw(LOGITS, seed=9)
    assert p_value(first * p.size + second, np.outer(p, p).ravel()) > 1e-3


def planted_top_p(logits: Floats, top_p: float, bug: str) -> Floats:
    """Top-p as others got it wrong."""
    order = np.argsort(-logits, kind="stable")
    mass = np.cumsum(softmax(logits)[order])
    removed = mass > top_p
    if bug == "removes the most likely":  # SpecEdge's: the shift that keeps the crossing token is done on ids
        removed = np.concatenate([[True], removed[:-1]])
    elif bug == "keeps the tail":
        removed = ~removed
    elif bug == "drops the crossing token":
        pass
    result = logits.copy()
    result[order[removed]] = -np.inf
    return result


@pytest.mark.parametrize("bug", ["removes the most likely", "keeps the tail", "drops the crossing token"])
def test_the_test_sees_a_wrong_top_p(bug: str) -> None:
    wrong = planted_top_p(LOGITS, 0.8, bug)
    assert p_value(draw(wrong, count=100_000), expected_distribution(CASES["top_p"])) < 1e-12


@pytest.mark.parametrize("spread", [0.2, 0.5, 1.0])
def test_a_draft_under_the_same_noise_matches_often(spread: float) -> None:
    """At least (1 - TV) / (1 + TV) of draws (Daliri et al. 2024), far above independent draws."""
    random = np.random.default_rng(5)
    target = random.standard_normal(50) * 2
    draft = target + random.standard_normal(50) * spread
    p, q = softmax(target), softmax(draft)
    distance = 0.5 * float(np.abs(p - q).sum())
    variates = noise(77, range(100_000), 50)
    targets = (target + variates).argmax(axis=1)
    drafts = (draft + variates).argmax(axis=1)
    rate = float((targets == drafts).mean())
    assert rate >= (1 - distance) / (1 + distance) - 3 * np.sqrt(0.25 / targets.size)
    assert rate <= 1 - distance + 0.01  # no coupling does better
    assert rate > 3 * float(p @ q)
    assert p_value(targets[:, None].ravel(), p) > 1e-3


@pytest.mark.parametrize("drafter", ["none", "same", "near", "random", "constant"])
def test_the_text_does_not_depend_on_the_draft(drafter: str) -> None:
    """Generate by verifying drafts of varying length; compare with decoding token by token."""
    vocab, length = 12, 60
    params = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2, frequency_penalty=0.2, seed=31)
    table = np.random.default_rng(6).standard_normal((vocab, vocab)) * 2
    near = table + np.random.default_rng(7).standard_normal((vocab, vocab)) * 0.5
    random = np.random.default_rng(8)

    def decode(rows: Floats, tokens: list[int], position: int, history: TokenHistory) -> int:
        return coupled_token(rows[tokens[position - 1]], params, position, history=history)

    def propose(tokens: list[int], count: int) -> list[int]:
        if drafter == "none":
            return []
        if drafter in ("random", "constant"):
            return random.integers(0, vocab, count).tolist() if drafter == "random" else [3] * count
        held = list(tokens)
        for _ in range(count):
            history = TokenHistory([1], held[1:])
            held.append(decode(near if drafter == "near" else table, held, len(held), history))
        return held[len(tokens) :]

    plain = [1]
    while len(plain) < length:
        plain.append(decode(table, plain, len(plain), TokenHistory([1], plain[1:])))

    tokens, history, steps = [1], TokenHistory([1]), 0
    while len(tokens) < length:
        draft = propose(tokens, int(random.integers(1, 6)))
        held = history.length
        chosen: list[int] = []
        for j in range(len(draft) + 1):
            chosen.append(decode(table, tokens + draft[:j], len(tokens) + j, history))
            if j == len(draft) or chosen[-1] != draft[j]:
                break
            history.push(draft[j])
        history.rewind(held)
        history.extend(chosen)
        tokens += chosen
        steps += 1
    assert tokens[:length] == plain
    if drafter in ("same", "near"):
        assert steps < length / 2 if drafter == "same" else steps < length
