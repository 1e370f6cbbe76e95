"""Files that a command is asked to write: refused before the work where they cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilotfish.files import check_folder, check_replaceable, replace_file
from pilotfish_core.errors import InvalidParameter


def test_a_new_name_and_a_regular_file_are_fine(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new", "n" * 255, "ü" * 127):
        check_replaceable("--save", tmp_path / name)
        assert [file.name for file in tmp_path.iterdir()] == ["old"]
    for name in ("old", "n" * 255):
        replace_file(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "path", ["", "/dev/null", "/dev/full", "/sys/x", "/proc/x", "n" * 300, "no/such/folder/g", "pipe"]
)
def test_what_cannot_be_replaced_is_refused_by_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(InvalidParameter, match=f"--save {path}"):
        check_replaceable("--save", path)
    assert os.listdir() == ["pipe"]


def test_a_folder_to_work_in(tmp_path: Path) -> None:
    check_folder("--work-dir", tmp_path / "a" / "b")
    assert [file.name for file in tmp_path.rglob("*")] == ["a", "b"]
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x"), tmp_path / ("n" * 300)):
        with pytest.raises(InvalidParameter, match=f"--work-dir {path}"):
            check_folder("--work-dir", path)
