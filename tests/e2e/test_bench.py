"""``pilotfish bench`` as a user runs it, against a verifier of the reference target, through real links."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Verifier

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

NEEDED = {
    "arm", "rtt_ms", "concurrency", "tokens_per_s", "ttft_ms", "tpot_ms", "steps_per_token", "mean_acceptance_length",
    "useful_draft_fraction", "bytes_up_per_token", "bytes_down_per_token", "identical",
}  # fmt: skip


async def bench(verifier: Verifier, *arguments: object) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "pilotfish", "bench", "--server", verifier.address, *map(str, arguments)]
    return await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def figures(verifier: Verifier, *arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON on standard output, and what was said beside it."""
    process = await bench(verifier, *arguments, "--json")
    output, errors = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, errors.decode()
    document: dict[str, Any] = json.loads(output)
    return document, errors.decode()


@pytest.mark.timeout(600)
async def test_two_arms_over_two_links(verifier: Verifier, tmp_path: Path) -> None:
    arms, rtts = ("cloud", "device-async"), (0, 40)
    picture = tmp_path / "bench.png"
    document, said = await figures(
        verifier, "--arms", ",".join(arms), "--rtt", "0,40", "--prompts", 2, "--max-tokens", 16,
        "--draft", "oracle:1,1", "--plot", picture,
    )  # fmt: skip
    rows = {(row["arm"], row["rtt_ms"]): row for row in document["rows"]}
    assert set(rows) == {(arm, rtt) for arm in arms for rtt in rtts}
    for row in rows.values():
        assert set(row) >= NEEDED
        assert (row["concurrency"], row["answers"], row["tokens"], row["identical"]) == (1, 2, 32, True)
        assert row["tokens_per_s"] > 0
        assert row["reconnects"] == 0
    for rtt in rtts:
        cloud, device = rows["cloud", rtt], rows["device-async", rtt]
        assert (cloud["sent_draft_tokens"], cloud["useful_draft_fraction"], cloud["ratio_to_cloud"]) == (0, None, 1)
        assert cloud["steps_per_token"] == 1
        assert device["sent_draft_tokens"] > 0
        assert device["ratio_to_cloud"] > 0
        assert device["ratio_to_cloud_95"] is None  # of two pairs
        assert sum(device["reasons"].values()) == 2
        assert device["arms_chosen"].keys() <= {"device-async", "cloud"}  # it pauses while drafts do not pay
    assert rows["cloud", 40]["ttft_ms"] >= 40
    assert document["identical"] is True
    assert document["target"]["fingerprint"] == verifier.engine.info.fingerprint
    assert document["target"]["deterministic"] is True
    assert document["machine"]["cores"] >= 1
    assert [cell["rtt_ms"] for cell in document["cells"]] == list(rtts)
    assert "RTT 40 ms, 1 stream: best " in said
    assert said.count("identical: yes") == 2
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.timeout(600)
async def test_several_streams(verifier: Verifier, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    process = await bench(
        verifier, "--arms", "device-async,cloud", "--rtt", 0, "--concurrency", 3, "--prompts", 3, "--max-tokens", 12,
        "--draft", "junk", "--repeats", 2, "--warmup", 0, "--json", file,
    )  # fmt: skip
    output, errors = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, errors.decode()
    document = json.loads(file.read_text())
    assert [row["arm"] for row in document["rows"]] == ["device-async", "cloud"]
    assert all((row["concurrency"], row["answers"], row["identical"]) == (3, 6, True) for row in document["rows"])
    assert f"figures: {file}" in output.decode()
    assert "device-async" in output.decode()
    assert all(row["ratio_to_cloud_95"] is not None for row in document["rows"])


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds child processes in /proc")
async def test_a_signal_ends_it_and_its_links(verifier: Verifier) -> None:
    process = await bench(verifier, "--rtt", 30, "--arms", "cloud", "--max-tokens", 4000, "--warmup", 0)
    assert process.stderr is not None
    assert (await process.stderr.readline()).startswith(b"bench: RTT 30 ms, 1 stream: ")
    links = children(process.pid)
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert len(links) == 1
    for link in links:
        with pytest.raises(ProcessLookupError):
            os.kill(link, 0)


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()  # after the name, which may hold anything
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


async def test_an_arm_that_the_verifier_cannot_offer(verifier: Verifier) -> None:
    process = await bench(verifier, "--arms", "cloud,co-located-model", "--rtt", 0, "--prompts", 1)
    output, errors = await asyncio.wait_for(process.communicate(), 100)
    assert (process.returncode, output) == (1, b"")
    assert errors == (
        b"pilotfish: --arms is 'co-located-model'; expected another arm: the verifier has no draft model "
        b"(--draft-model)\n"
    )


async def test_a_verifier_that_is_not_there(verifier: Verifier, tmp_path: Path) -> None:
    process = await bench(verifier, "--model", "other", "--rtt", 0)
    output, errors = await asyncio.wait_for(process.communicate(), 100)
    assert (process.returncode, output) == (1, b"")
    assert errors == b"pilotfish: the verifier does not serve model 'other'; it serves 'target'\n"
