import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish_cloud.engine.batch_sampler import gumbel, philox, row_sums, running_sums, sample_batch
from pilotfish_cloud.engine.sampler import NOT_SAMPLED, TOGETHER, Backend, Sampler, SequenceRows
from pilotfish_core.errors import InvalidParameter, NumericalFailure
from pilotfish_core.noise import gumbel_row, words_row
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.row_sampling import SampleRow
from pilotfish_core.sampling import TokenHistory, coupled_token, filtered_logits

BACKENDS: tuple[Backend, ...] = ("numpy", "torch")
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def row(seed: int, position: int) -> SampleRow:
    return SampleRow(SamplingParams(), seed, position)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_torch_philox_equals_numpy(seed: int, position: int) -> None:
    words = philox(torch.arange(9)[None], [row(seed, position), row(3, 4)])
    assert words[0].reshape(-1).tolist() == words_row(seed, position, 36).tolist()
    assert words[1].reshape(-1).tolist() == words_row(3, 4, 36).tolist()
    assert np.allclose(gumbel(words)[0].reshape(-1).numpy(), gumbel_row(seed, position, 36), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_sums_in_a_fixed_order(size: int) -> None:
    values = torch.rand(3, size, dtype=torch.float64)
    assert torch.allclose(row_sums(values.clone()), values.sum(dim=1), rtol=1e-13)
    assert torch.allclose(running_sums(values.clone()), values.cumsum(dim=1), rtol=1e-13)
    assert torch.equal(row_sums(values[1:2]), row_sums(values)[1:2])


@st.composite
def sequences(draw: st.DrawFn, vocab: int) -> SequenceRows:
    token = st.integers(0, vocab - 1)
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0, 1e-12])),
        top_k=draw(st.sampled_from([0, 0, 1, 6, 1024, 1500])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3])),
        logit_bias=draw(st.sampled_from([(), ((1, 2.0), (1, 1.0), (999_999, 3.0))])),
        logprobs=draw(st.sampled_from([None, 0, 3])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
    return SequenceRows(
        params=params,
        position=draw(st.integers(0, 2**33)),
        draft=draw(st.lists(token, max_size=3)),
        history=TokenHistory(draw(st.lists(token, max_size=9)), draw(st.lists(token, max_size=9))),
        banned=draw(st.lists(token, max_size=2)),
        banned_rows=draw(st.integers(0, 2)),
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.data(),
    st.integers(0, 2**31),
    st.sampled_from([30, 2500]),
    st.sampled_from(["normal", "flat", "steps", "masked"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_torch_and_numpy_choose_the_same_tokens(
    data: st.DataObject, number: int, vocab: int, shape: str, dtype: torch.dtype
) -> None:
    chosen = data.draw(st.lists(sequences(vocab), min_size=1, max_size=5))
    rows = sum(sequence.count for sequence in chosen)
    logits = torch.randn(rows, vocab + 6, generator=torch.Generator().manual_seed(number)) * 3
    if shape == "flat":
        logits *= 0.001
    elif shape == "steps":
        logits = logits.round()
    elif shape == "masked":
        logits[logits < 4] = -math.inf
        logits[:, 5:9] = 1.0
    logits = logits.to(dtype)
    ours, theirs = (Sampler(vocab, backend=backend).sample(logits, chosen) for backend in BACKENDS)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.token_ids == other.token_ids
        assert (mine.error is None) == (other.error is None)
        assert (mine.logprobs is None) == (other.logprobs is None)
        for a, b in zip(mine.logprobs or [], other.logprobs or [], strict=True):
            assert a.chosen == pytest.approx(b.chosen, rel=1e-12, abs=1e-12)
            assert [token for token, _ in a.top] == [token for token, _ in b.top]
            assert [v for _, v in a.top] == pytest.approx([v for _, v in b.top], rel=1e-12, abs=1e-12)


MIXED = (
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.8, top_p=0.95, top_k=50),
    GREEDY,
    SamplingParams(seed=3, temperature=0.7, top_p=0.9, logprobs=4),
    SamplingParams(seed=4, min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.1),
    SamplingParams(seed=5, top_k=2000, logit_bias=((7, 3.0),)),
    SamplingParams(seed=6, logprobs=2),
    SamplingParams(seed=7, top_p=0.999, temperature=3.0),
)


def mixed(repeats: int, vocab: int) -> tuple[torch.Tensor, list[SequenceRows]]:
    chosen = [
        SequenceRows(params=params, position=10 * i, draft=[i % 5, 1], history=TokenHistory([1, 2], [3, 3]))
        for i, params in enumerate(MIXED * repeats)
    ]
    logits = torch.randn(3 * len(chosen), vocab, generator=torch.Generator().manual_seed(0)) * 3
    return logits, chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_its_batch(backend: Backend) -> None:
    """Bit for bit, logprobs included: deterministic mode relies on it."""
    vocab = 5003
    logits, chosen = mixed(2, vocab)
    sampler = Sampler(vocab, backend=backend)
    together = sampler.sample(logits, chosen)
    reordered = list(range(len(chosen)))[::-1]
    backwards = sampler.sample(
        torch.cat([logits[3 * i : 3 * i + 3] for i in reordered]), [chosen[i] for i in reordered]
    )
    for i, sequence in enumerate(chosen):
        alone = sampler.sample(logits[3 * i : 3 * i + 3], [sequence])[0]
        assert alone == together[i]
        assert alone == backwards[len(chosen) - 1 - i]


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_vocabulary(backend: Backend) -> None:
    vocab = 151_936
    logits, chosen = mixed(1, vocab + 128)
    results = Sampler(vocab, backend=backend).sample(logits, chosen)
    for i, (sequence, result) in enumerate(zip(chosen, results, strict=True)):
        first = coupled_token(
            logits[3 * i].numpy(), sequence.params, sequence.position, history=sequence.history, vocab_size=vocab
        )
        assert result.token_ids[0] == first


@pytest.mark.parametrize("backend", BACKENDS)
def test_penalties_of_a_row_count_the_drafts_before_it(backend: Backend) -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=1.0)
    history = TokenHistory([], [0])
    logits = torch.tensor([[3.0, 2.5, 2.2, 0.0]]).expand(4, 4)
    sequence = SequenceRows(params=params, position=1, draft=[1, 2, 1], history=history)
    result = Sampler(4, backend=backend).sample(logits, [sequence])[0]
    assert result.token_ids == [1, 2, 0, 0]
    assert history.length == 1
    with pytest.raises(ValueError, match="history"):
        Sampler(4).sample(logits, [dataclasses.replace(sequence, history=None)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_bans_hold_for_the_rows_they_are_meant_for(backend: Backend) -> None:
    sequence = SequenceRows(params=GREEDY, position=0, draft=[1, 1], banned=[0, 99], banned_rows=2)
    result = Sampler(3, backend=backend).sample(torch.tensor([[5.0, 4.0, 0.0, 9.0]]).expand(3, 4), [sequence])[0]
    assert result.token_ids == [1, 1, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_ties_go_to_the_lowest_id(backend: Backend, dtype: torch.dtype) -> None:
    logits = torch.zeros(40, 3000, dtype=dtype)
    for i in range(40):
        logits[i, 70 + i :: 17] = 2.0
    chosen = [SequenceRows(params=GREEDY, position=0) for _ in range(40)]
    results = Sampler(3000, backend=backend).sample(logits, chosen)
    assert [result.token_ids for result in results] == [[70 + i] for i in range(40)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_fails_its_own_sequence_only(backend: Backend, bad: float) -> None:
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    broken = logits.clone()
    if bad == -math.inf:
        broken[3, :20] = bad
    else:
        broken[3, 7] = bad
    params = SamplingParams(logprobs=2)
    chosen = [SequenceRows(params=params, position=i, draft=[0]) for i in range(3)]
    sampler = Sampler(20, backend=backend)
    good, results = sampler.sample(logits, chosen), sampler.sample(broken, chosen)
    assert results[0] == good[0]
    assert results[2] == good[2]
    assert isinstance(results[1].error, NumericalFailure)
    assert results[1].token_ids == good[1].token_ids[:1]
    assert results[1].logprobs is not None
    assert len(results[1].logprobs) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_not_read(backend: Backend) -> None:
    logits = torch.zeros(1, 8)
    logits[0, 4:] = math.nan
    result = Sampler(4, backend=backend).sample(logits, [SequenceRows(params=SamplingParams(logprobs=1), position=0)])
    assert result[0].error is None
    assert result[0].token_ids[0] < 4


@pytest.mark.parametrize("vocab", [50, TOGETHER + 1])
def test_stopping_at_the_first_mismatch_changes_nothing_before_it(vocab: int) -> None:
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(2))
    sampler = Sampler(vocab)
    full = sampler.sample(logits, [SequenceRows(params=SamplingParams(), position=0, draft=[0, 0, 0])])[0]
    draft = [full.token_ids[0], (full.token_ids[1] + 1) % vocab, 0]
    chain = SequenceRows(params=SamplingParams(), position=0, draft=draft)
    lazy = sampler.sample(logits, [chain], stop_at_mismatch=True)[0]
    assert lazy.token_ids[:2] == full.token_ids[:2]
    if vocab > TOGETHER:
        assert lazy.token_ids[2:] == [NOT_SAMPLED, NOT_SAMPLED]


def test_sub_seeds_replace_the_seed() -> None:
    logits = torch.zeros(1, 1000)
    own = Sampler(1000).sample(logits, [SequenceRows(params=SamplingParams(seed=5), position=0, seed=9)])
    assert own == Sampler(1000).sample(logits, [SequenceRows(params=SamplingParams(seed=9), position=0)])


def test_shapes_are_checked() -> None:
    sequence = SequenceRows(params=GREEDY, position=0)
    for shape in ((2, 5), (1, 3), (5,)):
        with pytest.raises(ValueError, match="logits"):
            Sampler(4).sample(torch.zeros(shape), [sequence])
    with pytest.raises(InvalidParameter):
        Sampler(0)
    assert Sampler(4).sample(torch.zeros(0, 4), []) == []
    assert Sampler(4, backend="torch").sample(torch.zeros(0, 4), []) == []


def test_torch_draws_follow_the_filtered_distribution() -> None:
    """30,000 rows at once, against the softmax of the specification."""
    count = 30_000
    logits = torch.tensor([2.0, 1.5, 1.5, 0.3, 0.0, -0.4, -1.0, 1.1])
    params = SamplingParams(temperature=0.9, top_p=0.9)
    rows = [SampleRow(params, 4, position) for position in range(count)]
    outcomes = sample_batch(logits.expand(count, 8), rows)
    draws = [outcome[0] for outcome in outcomes if not isinstance(outcome, NumericalFailure)]
    p = np.exp(filtered_logits(logits.numpy(), params))
    p /= p.sum()
    counts = np.bincount(draws, minlength=8)
    assert not counts[p == 0].any()
    error = counts - count * p
    assert (error[p > 0] ** 2 / (count * p[p > 0])).sum() < 25  # chi-square with 5 degrees: 1e-4
