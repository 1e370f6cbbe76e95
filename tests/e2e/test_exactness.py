"""The exactness benchmark's own code on a small scale: a pairwise design over two verifier processes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks.exactness import WORK, make_bench, problems_of, record_of
from benchmarks.exactness_design import FACTORS, SAMPLINGS, all_pairs, design, missing_pairs
from benchmarks.exactness_reference import Reference, ReferenceCounts
from benchmarks.exactness_report import ROOT
from benchmarks.exactness_runs import Bench, Run, Verifiers, compare, held_out_prompts, overlap, run_alone, run_cell
from pilotfish_core.tokenizer import Tokenizer

SEED = 5
# One pair of processes: their start is what takes long.
SMALL: Mapping[str, Sequence[Any]] = {**FACTORS, "window": (1, 8, 32), "dtype": ("float32",), "cache": ("warm",)}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_nothing_changes_the_text() -> None:
    bench = make_bench(ROOT / "reference", WORK, prompts=4, tokens=24, seed=SEED)
    cells = design(SMALL, SEED)
    accepted = resumes = 0
    # By drafter, not by cell: one token of a far too fast verifier's answer may outrun every draft of a window of one.
    drafted: Counter[str] = Counter()
    async with Verifiers(bench.target, dtype="float32", deterministic=True) as verifiers:
        assert len(set(verifiers.fingerprints)) == 1
        alone = {name: await run_alone(bench, verifiers, name, lambda _: None) for name in SAMPLINGS}
        for cell in cells:
            expected = alone[cell.sampling]
            run = await run_cell(bench, verifiers, cell, expected.answers, lambda _: None)
            record = record_of(bench, verifiers, cell, run, expected)
            assert (record["differing_tokens"], record["differences"]) == (0, []), cell.key
            assert record["fingerprints"] == sorted(expected.fingerprints)
            assert run.drafter_errors == []
            drafted[cell.draft] += run.counts.drafted_steps
            accepted += run.counts.accepted_draft_tokens
            resumes += run.counts.resumes
    assert all(drafted[draft] > 0 for draft in FACTORS["draft"]), drafted
    assert accepted > 100
    assert resumes >= len(bench.prompts)
    counts = ReferenceCounts()
    reference = Reference(bench.target, bench.tokenizer.vocab_size)
    for name, run in alone.items():
        for prompt in bench.prompts:
            reference.check(prompt, run.answers[prompt.index], SAMPLINGS[name], counts)
    assert counts.positions == len(SAMPLINGS) * len(bench.prompts) * bench.tokens
    assert (counts.unexplained, counts.shown[:1]) == (0, [])


def test_the_design_covers_every_pair_and_nothing_twice() -> None:
    rows = [dataclasses.asdict(cell) for cell in design(FACTORS, SEED)]
    assert missing_pairs(rows, FACTORS) == set()
    assert len(all_pairs(FACTORS)) == 167
    assert len(rows) < 26  # the product has 960
    assert len(missing_pairs(rows[1:], FACTORS)) > 0
    assert design(FACTORS, SEED) == design(FACTORS, SEED)


def test_prompts_are_seeded_and_tell_each_other_apart() -> None:
    tokenizer = Tokenizer.load(ROOT / "reference" / "target")
    prompts = held_out_prompts(tokenizer, 60, SEED)
    assert prompts == held_out_prompts(tokenizer, 60, SEED)
    assert [prompt.index for prompt in prompts] == list(range(60))
    assert len({prompt.seed for prompt in prompts}) == 60
    for index, prompt in enumerate(prompts):
        assert 16 <= len(prompt.tokens) <= 448
        assert not any(overlap(prompt.tokens, other.tokens) for other in prompts[:index])


def test_a_difference_is_found_and_told() -> None:
    tokenizer = Tokenizer.load(ROOT / "reference" / "target")
    prompts = held_out_prompts(tokenizer, 2, SEED)
    bench = Bench(target=ROOT, draft=ROOT, tokenizer=tokenizer, prompts=prompts, tokens=4, seed=SEED)
    expected = Run(answers={0: (1, 2, 3, 4), 1: (5, 6, 7, 8)}, fingerprints={"pf-a"})
    found = Run(answers={0: (1, 2, 3, 4), 1: (5, 9, 7)}, fingerprints={"pf-b"}, cuts={1: 2})
    record = compare(bench, found, expected.answers)
    assert (record["differing_answers"], record["differing_tokens"], record["flips"]) == (1, 2, 1)
    assert record["compared"] == 4 + 2
    assert record["differences"][0] | {"source": "", "seed": 0} == {
        "prompt": 1,
        "source": "",
        "prompt_tokens": len(prompts[1].tokens),
        "seed": 0,
        "output_index": 1,
        "cut": 2,
        "found": [9, 7],
        "expected": [6, 7, 8],
    }
    cell = next(cell for cell in design(SMALL, SEED) if cell.resume)
    problems = problems_of(cell, found, record | {"fingerprints": ["pf-b"]}, expected)
    assert problems[0] == "2 tokens in 1 answers differ"
    assert "pf-b" in problems[1]
    assert "no draft was verified" in problems
    assert "no answer was resumed" in problems
