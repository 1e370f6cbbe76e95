"""The report: one file, well formed, with nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pilotfish_sim.cli import main
from pilotfish_sim.details import timeline_of
from pilotfish_sim.scenario import Scenario

VOID = {"meta", "link"}


class Tags(HTMLParser):
    """Raises ValueError unless every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            raise ValueError(tag)


def test_a_sweep_s_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.html"
    sets = ["--set", "link.rtt_ms=0,40", "--set", "arm=cloud,device-async", "--set", "prices=h100-2026"]
    sets += ["--set", "workload.answers=2", "--set", "workload.output_tokens=32", "--set", "device=phone-npu"]
    assert main(["sweep", *sets, "--processes", "1", "--html", str(file)]) == 0
    capsys.readouterr()
    text = file.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not re.findall(r"<script|https?://|url\(", text)
    assert "prefers-color-scheme: dark" in text
    for title in ("Rate against round trip", "Time to first token", "One answer, device-async", "Energy", "All rows"):
        assert title in text
    assert text.count("<svg") == 8


def test_a_run_s_report_and_a_bad_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = ["run", "--set", "workload.answers=2", "--set", "workload.output_tokens=16"]
    assert main([*fast, "--html", str(tmp_path / "one.html")]) == 0
    assert "Tokens a second" in (tmp_path / "one.html").read_text()
    capsys.readouterr()
    assert main([*fast, "--html", str(tmp_path / "one.txt")]) == 1
    assert "--html" in capsys.readouterr().err


def test_a_timeline_falls_at_a_rollback() -> None:
    scenario = Scenario.of(
        {"arm": "device-async", "link": {"rtt_ms": 40}, "device": {"draft_ms": 4}, "workload": {"output_tokens": 64}}
    )
    timeline = timeline_of(scenario)
    assert timeline.committed[-1][1] == 64
    assert timeline.rollbacks
    assert timeline.sent
    heights = dict(timeline.drafted)
    assert all(heights[at] <= before for at, before in timeline.rollbacks)
