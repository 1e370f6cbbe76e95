"""Never lose a word, in small: what ``benchmarks.cuts`` does at length."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.cuts_runs import Answers, App, cut_answers, killed_answers, offline_answers
from pilotfish.export import export_model
from pilotfish.result import Piece, Revised
from pilotfish_core.drafts import Origin
from tests.e2e.conftest import ROOT, Verifier

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft") / "int8"
    return export_model(ROOT / "reference" / "draft", folder, quant="int8", text="import os\n" * 40).folder


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def answers(verifier: Verifier) -> Answers:
    return await Answers.undisturbed(verifier.address, prompts=2)


async def test_connections_that_are_cut_at_any_byte(verifier: Verifier, answers: Answers, draft: Path) -> None:
    tally = await cut_answers(verifier.address, draft, answers, random.Random(3), 12)
    assert not tally.failures
    assert tally.counts["cuts"] >= 12
    assert tally.counts["reconnects"] >= 6  # one that meets an answer at its end needs none


async def test_killed_processes_go_on_from_their_file(
    verifier: Verifier, answers: Answers, draft: Path, tmp_path: Path
) -> None:
    tally = await killed_answers(verifier.address, draft, answers, random.Random(3), 2, tmp_path)
    assert not tally.failures
    assert tally.counts["kills"] >= 2


async def test_a_link_that_is_away_for_64_tokens(verifier: Verifier, answers: Answers, draft: Path) -> None:
    tally = await offline_answers(verifier.address, draft, answers, random.Random(3), 3)
    assert not tally.failures
    assert tally.counts["unverified"] >= 3 * 64
    assert tally.counts["confirmed"] + tally.counts["withdrawn"] == tally.counts["unverified"]


async def test_the_app_of_these_tests_sees_what_is_wrong(answers: Answers) -> None:
    expected = answers.results[0]
    ids = expected.token_ids

    def wrong(*pieces: Piece) -> list[str]:
        app = App(expected, 5)
        for piece in pieces:
            app.take(piece)
        app.end(expected)
        return app.wrong

    right = Piece(expected.text, ids, Origin.CLOUD)
    assert wrong(right) == []
    assert wrong(right, Piece("", ids[-1:], Origin.CLOUD))  # doubled
    assert wrong(Piece(expected.text, ids[1:], Origin.CLOUD))  # lost
    assert wrong(Piece(expected.text, ids, Origin.UNVERIFIED))  # never verified
    revised = Revised(
        expected.text, ids, Origin.CLOUD, None, position=5, offset=0, removed="x", confirmed_text=expected.text
    )
    assert wrong(Piece("x", (1,), Origin.UNVERIFIED), revised) == []
    assert wrong(Piece("y", (1,), Origin.UNVERIFIED), revised)  # removes what is not there
