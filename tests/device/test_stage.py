"""What the demo prepares: made once, and only its own is removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pilotfish.demo import stage


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference pair, and commands that only write the file by which a model is known to be whole."""

    def run(command: Sequence[str], folder: Path) -> None:
        inflating = "reference.inflate" in command
        out = Path(command[4] if inflating else command[command.index("--out") + 1])
        out.mkdir()
        (out / ("config.json" if inflating else "manifest.json")).touch()

    monkeypatch.setattr(stage, "_run", run)
    for part in ("target", "draft"):
        (tmp_path / "reference" / part).mkdir(parents=True)
        (tmp_path / "reference" / part / "config.json").write_text("1")
    return tmp_path / "reference"


def test_what_an_earlier_demo_prepared_is_removed_and_nothing_else(reference: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    theirs = [work / "target-of-my-thesis", work / "draft-int8-best"]
    for folder in theirs:
        folder.mkdir(parents=True)
        (folder / "weights").touch()
    first = {stage.inflated_target(reference, work), stage.exported_draft(reference, work, "int8")}
    assert first == {stage.inflated_target(reference, work), stage.exported_draft(reference, work, "int8")}
    for part in ("target", "draft"):
        (reference / part / "config.json").write_text("2")
    second = {stage.inflated_target(reference, work), stage.exported_draft(reference, work, "int8")}
    assert not first & second
    assert set(work.iterdir()) == {*theirs, *second}
    assert all((folder / "weights").is_file() for folder in theirs)
