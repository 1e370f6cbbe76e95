"""Prompts by hash: what was sent is found again, by its tenant only, and memory stays bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.prompts import PROMPT_BLOCK, PromptPrefix, PromptStore, SentPrompts, prefixes

SHARED = tuple(range(1000, 1000 + 5 * PROMPT_BLOCK))
PROMPTS = st.tuples(st.integers(0, len(SHARED)), st.lists(st.integers(0, 2**32 - 1), max_size=40)).map(
    lambda parts: (*SHARED[: parts[0]], *parts[1])
)


@given(st.lists(st.tuples(st.sampled_from("ab"), PROMPTS), max_size=8), st.sampled_from("ab"), PROMPTS)
def test_a_device_and_a_cloud_that_remember_agree(
    history: list[tuple[str, tuple[int, ...]]], tenant: str, prompt: tuple[int, ...]
) -> None:
    store, memories = PromptStore(), {"a": SentPrompts(), "b": SentPrompts()}
    for name, tokens in history:
        store.insert(name, tokens)
        memories[name].sent(tokens)
    prefix = memories[tenant].known(prompt)
    shared = max((_common(tokens, prompt) for name, tokens in history if name == tenant), default=0)
    whole = shared // PROMPT_BLOCK * PROMPT_BLOCK
    if whole < 2 * PROMPT_BLOCK:
        assert prefix is None
    else:
        assert prefix is not None
        assert prefix.length == whole
        assert store.find(tenant, prefix) == prompt[: prefix.length]


@given(PROMPTS, st.integers(0, 200))
def test_no_other_tenant_and_no_other_length(prompt: tuple[int, ...], length: int) -> None:
    store = PromptStore()
    store.insert("a", prompt)
    for prefix in prefixes(prompt):
        assert store.find("b", prefix) is None
        if length != prefix.length:
            assert store.find("a", PromptPrefix(prefix.digest, length)) is None
    assert store.find("a", PromptPrefix(bytes(32), PROMPT_BLOCK)) is None


@given(st.lists(PROMPTS, max_size=12), st.integers(1, 6))
def test_memory_is_bounded_and_never_wrong(prompts: list[tuple[int, ...]], bound: int) -> None:
    store, memory = PromptStore(max_blocks=bound), SentPrompts(max_blocks=bound)
    for prompt in prompts:
        store.insert("a", prompt)
        memory.sent(prompt)
        assert len(store) <= bound
        assert len(memory) <= bound
        for prefix in prefixes(prompt):
            assert store.find("a", prefix) in (None, prompt[: prefix.length])


def test_the_head_that_prompts_share_is_forgotten_last() -> None:
    store = PromptStore(max_blocks=6)
    for number in range(20):
        store.insert("a", (*SHARED[: 4 * PROMPT_BLOCK], *[number] * PROMPT_BLOCK))
    assert store.find("a", prefixes(SHARED)[3]) == SHARED[: 4 * PROMPT_BLOCK]


def test_a_device_that_was_told_forgets() -> None:
    memory = SentPrompts()
    memory.sent(SHARED)
    assert memory.known((*SHARED, 1)) == prefixes(SHARED)[-1]
    memory.forget(SHARED)
    assert memory.known(SHARED) is None
    assert len(memory) == 0


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
