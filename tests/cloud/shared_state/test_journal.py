"""Usage that outlives its process: killed at any moment, the next one tells it, once."""

from __future__ import annotations

import collections
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilotfish_cloud.shared_state.interface import StateTroubleError, UsageKey
from pilotfish_cloud.shared_state.journal import UsageJournal
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_core.errors import LocalError
from tests.cloud.shared_state.test_admission import LINE, FlakyState

DAY = "2026-01-31"
TOKENS = UsageKey(DAY, "a", "committed_tokens")
PROMPTS = UsageKey(DAY, "a\n:b", "prompt_tokens")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.journal"


def left(path: Path) -> list[tuple[str, dict[UsageKey, int]]]:
    """What the next process finds."""
    journal = UsageJournal(path, "next")
    journal.close()
    return [(source, usage) for source, _, usage in journal.left]


def test_what_was_not_heard_is_left(path: Path) -> None:
    journal = UsageJournal(path, "one")
    assert journal.left == ()
    journal.count({TOKENS: 3})
    journal.count({TOKENS: 4, PROMPTS: 9})
    journal.reported(1)
    journal.heard("one", 1)
    journal.count({TOKENS: 5})
    journal.reported(2)
    journal.count({TOKENS: 6})
    journal.close()
    for _ in range(2):  # reading changes nothing: it may be killed, too
        assert left(path) == [("one", {TOKENS: 5}), ("one", {TOKENS: 6})]
    assert path.stat().st_mode & 0o777 == 0o600
    second = UsageJournal(path, "two")
    numbers = [number for _, number, _ in second.left]
    assert numbers[0] == 2  # the number that the first process said: the store knows whether it heard it
    assert numbers[1] > 2
    second.count({TOKENS: 7})
    second.heard("one", numbers[0])
    second.close()
    assert left(path) == [("one", {TOKENS: 6}), ("two", {TOKENS: 7})]


def test_it_stays_small(path: Path) -> None:
    journal = UsageJournal(path, "one")
    for number in range(1, 200):
        journal.count({TOKENS: 1})
        journal.reported(number)
        journal.heard("one", number)
    journal.reported(200)  # nothing was counted
    assert path.stat().st_size < 100
    journal.close()
    assert left(path) == []


def test_it_stays_small_while_nobody_hears(path: Path) -> None:
    journal = UsageJournal(path, "one")
    journal.count({PROMPTS: 1})
    journal.reported(1)
    long = UsageKey(DAY, "a" * 1000, "committed_tokens")
    sizes = []
    for _ in range(4000):  # 4 MB, were they not added up
        journal.count({long: 1})
        sizes.append(path.stat().st_size)
    assert max(sizes) < 1.1 * 2**20
    assert min(sizes[2000:]) < 4000
    journal.close()
    assert left(path) == [("one", {PROMPTS: 1}), ("one", {long: 4000})]


def test_each_process_has_its_own(path: Path) -> None:
    journal = UsageJournal(path, "one")
    journal.count({TOKENS: 1})
    journal.reported(1)
    journal.heard("one", 1)  # it is another file by now
    with pytest.raises(LocalError, match="another process has it"):
        UsageJournal(path, "two")
    journal.close()
    UsageJournal(path, "two").close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be used: No such file"):
        UsageJournal(tmp_path / "none" / "usage.journal", "one")


def test_a_line_that_was_cut_off(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = UsageJournal(path, "one")
    journal.count({TOKENS: 1})
    journal.close()
    with path.open("a") as file:
        file.write('[1]\n{"count":[["2026-01-31","a","gold",1]]}\n{"count":[["2026-01-31","a","commi')
    with caplog.at_level(logging.WARNING):
        assert left(path) == [("one", {TOKENS: 1})]
    assert caplog.text.count("left out") == 3


COUNTING = """
import logging, os, resource, signal, sys
from pathlib import Path
from pilotfish_cloud.shared_state.interface import UsageKey
from pilotfish_cloud.shared_state.journal import UsageJournal
path, reports, how, room = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
journal = UsageJournal(path, "ended")
for number in range(1, 1 + reports):
    journal.count({UsageKey("2026-01-31", "a", "committed_tokens"): 1})
    journal.reported(number)
    if how == "full" and number == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
if how == "full":
    journal.heard("ended", 1)
else:
    os.kill(os.getpid(), 9)
"""


def counting(path: Path, reports: int, how: str, room: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COUNTING, str(path), str(reports), how, str(room)]
    return subprocess.run(command, env=os.environ, check=False, capture_output=True, text=True)


def test_kill_9_loses_nothing(path: Path) -> None:
    assert counting(path, 50, "killed").returncode == -signal.SIGKILL
    found = left(path)
    assert len(found) == 50
    assert sum(usage[TOKENS] for _, usage in found) == 50


@pytest.mark.parametrize("room", [0, 20, 55])  # bytes that are free: not a count, or one without its report
def test_a_full_disk_ends_nothing_and_bills_nothing_twice(path: Path, room: int) -> None:
    """The process goes on and tells its counts from memory; the next one must not tell them again."""
    done = counting(path, 4, "full", room)
    assert done.returncode == 0
    assert done.stderr.count("in memory only") == 1
    assert left(path) == []


@pytest.mark.parametrize("lossy", [True, False])
async def test_the_next_process_tells_it_once(path: Path, lossy: bool) -> None:
    state = FlakyState()
    first = StateLink(state, "r", lambda: LINE, journal=path, tick_s=1000)
    await first.start()
    assert first.ledger.journal is not None
    first.ledger._keep(collections.Counter({TOKENS: 8}))
    state.lossy, state.down = lossy, not lossy
    with pytest.raises(StateTroubleError):
        await first._report()  # heard or not: the first process never knows
    first.ledger._keep(collections.Counter({TOKENS: 4}))
    first.ledger.journal.close()  # as a kill does
    state.lossy = state.down = False
    for _ in range(2):  # and a third process has nothing more to tell
        link = StateLink(state, "r", lambda: LINE, journal=path, tick_s=1000)
        await link.start()
        assert await state.usage(DAY) == {"a": {"committed_tokens": 12}}
        await link.close()
    await first.close()
    assert await state.usage(DAY) == {"a": {"committed_tokens": 12}}
