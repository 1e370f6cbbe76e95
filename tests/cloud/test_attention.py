"""One call for many sequences: whatever is put together, each row attends to its own past and to nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish_cloud.engine.attention import AttentionStep
from pilotfish_cloud.engine.attention_plan import AttentionRule, Segment, batches_of, calls_of
from pilotfish_cloud.engine.kv_store import KVStore

SLOTS, KV_HEADS, GROUP, DIM = 9, 2, 3, 8
NORMAL = AttentionRule()
STRICT = AttentionRule(512, 4, 128, 32)
TILES = AttentionRule(512, 12, 12)


def store_of() -> KVStore:
    return KVStore(
        num_slots=SLOTS,
        num_blocks=1,
        block_size=1,
        max_len=700,
        num_layers=2,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def packed(parts: list[tuple[int, int, int]]) -> list[Segment]:
    """Segments of (slot, start, rows), one after the other."""
    segments, begin = [], 0
    for slot, start, rows in parts:
        segments.append(Segment(slot, begin, begin + rows, start))
        begin += rows
    return segments


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    slots = draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True))
    starts = st.one_of(st.just(0), st.integers(0, 40), st.integers(450, 600))
    return [(slot, draw(starts), draw(st.sampled_from((1, 1, 1, 2, 5, 40)))) for slot in slots]


@settings(max_examples=60, deadline=None)
@given(
    steps(),
    st.integers(0, 5),
    st.sampled_from((None, 1, 7, 100)),
    st.sampled_from((NORMAL, STRICT, TILES)),
    st.sampled_from((None, 1.5)),
)
def test_rows_see_their_own_past_only(
    parts: list[tuple[int, int, int]], padding: int, window: int | None, rule: AttentionRule, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(len(parts))
    store, segments, layer = store_of(), packed(parts), 1
    for past in (store.keys[layer], store.values[layer]):
        past.copy_(torch.randn(past.shape, generator=generator))
    rows = segments[-1].end + padding
    query = torch.randn(1, rows, KV_HEADS * GROUP, DIM, generator=generator).transpose(1, 2)
    key, value = (torch.randn(1, rows, KV_HEADS, DIM, generator=generator).transpose(1, 2) for _ in range(2))
    step = AttentionStep(store, segments, rows, GROUP, rule)
    found = step.attend(layer, query, key, value, 0.3, window, softcap)
    assert found.shape == (1, rows, KV_HEADS * GROUP, DIM)
    for segment in segments:
        for row in range(segment.begin, segment.end):
            position = segment.start + row - segment.begin
            first = 0 if window is None else max(position + 1 - window, 0)
            keys, values = (one[layer][segment.slot, :, first : position + 1] for one in (store.keys, store.values))
            torch.testing.assert_close(keys[:, -1], key[0, :, row])
            scores = torch.einsum("hgd,hkd->hgk", query[0, :, row].view(KV_HEADS, GROUP, DIM), keys) * 0.3
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            expected = torch.einsum("hgk,hkd->hgd", scores.softmax(-1), values).reshape(KV_HEADS * GROUP, DIM)
            torch.testing.assert_close(found[0, row], expected, rtol=1e-4, atol=1e-4)


def batches(parts: list[tuple[int, int, int]], call_cost: float = 100.0) -> list[list[int]]:
    """The slots that share a call."""
    put_together = batches_of(calls_of(packed(parts), 1, NORMAL, None), call_cost)
    return [[call.slot for call in batch.calls] for batch in put_together]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(0, 60, 1), (1, 70, 1), (2, 65, 1)], [[0, 1, 2]]),
        ([(2, 60, 1), (0, 70, 1), (1, 65, 1)], [[0, 1, 2]]),  # in any order
        ([(0, 60, 1), (2, 60, 1)], [[0, 2]]),  # computing the arena between is cheaper than a call
        ([(0, 60, 1), (8, 60, 1)], [[0], [8]]),
        ([(0, 60, 1), (1, 600, 1)], [[0], [1]]),  # padding the short one is dearer
        ([(0, 60, 1), (1, 60, 400), (2, 60, 1)], [[0], [1], [2]]),  # a prompt among decoding ones
        ([(0, 20, 1), (1, 20, 4), (2, 20, 2)], [[0, 1, 2]]),  # ragged drafts
    ],
)
def test_what_shares_a_call(parts: list[tuple[int, int, int]], expected: list[list[int]]) -> None:
    assert batches(parts) == expected


def test_a_window_leaves_keys_behind() -> None:
    (call,) = calls_of(packed([(0, 600, 1)]), 1, STRICT, 50)
    assert (call.first, call.length) == (512, 1024)
    (call,) = calls_of(packed([(0, 600, 1)]), 1, NORMAL, 50)
    assert (call.first, call.length) == (512, 601)


def test_long_segments_are_cut_into_allowed_calls() -> None:
    calls = calls_of(packed([(0, 0, 300)]), 3, STRICT, None)
    assert sum(call.end - call.begin for call in calls) == 300
    assert all(STRICT.allows(call.taken * 3) for call in calls)
    assert all(call.taken >= call.end - call.begin for call in calls)
