"""Settings: flags before environment before the file, and files that are refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from pilotfish.settings import FILE_VARIABLE, SETTINGS, settle, usual_file
from pilotfish_core.errors import FileFormatError, InvalidParameter, PilotfishError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for setting in SETTINGS.values():
        if setting.variable:
            monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.delenv("PILOTFISH_API_KEY", raising=False)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "pilotfish").mkdir()
    return tmp_path


def write(text: str, mode: int = 0o600) -> Path:
    file = usual_file()
    file.write_text(text)
    file.chmod(mode)
    return file


def settled(**given: Any) -> argparse.Namespace:
    arguments = argparse.Namespace(**dict.fromkeys(SETTINGS) | {"config": None} | given)
    settle(arguments)
    return arguments


def refused(**given: Any) -> PilotfishError:
    with pytest.raises((FileFormatError, InvalidParameter)) as caught:
        settled(**given)
    return caught.value


def test_defaults_without_any_file() -> None:
    found = settled()
    assert (found.server, found.draft, found.window, found.pad, found.model) == (None, "auto", 16, False, "")


def test_flags_go_before_the_environment_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write('verifier = "a:1"\ndraft = "ngram"\nwindow = 4\npad = true\narm = "cloud"\n')
    found = settled()
    assert (found.server, found.draft, found.window, found.pad, found.arm) == ("a:1", "ngram", 4, True, "cloud")
    monkeypatch.setenv("PILOTFISH_VERIFIER", "b:2")
    assert settled().server == "b:2"
    assert settled(server="c:3", window=7).server == "c:3"
    assert settled(window=7).window == 7


def test_another_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write('verifier = "a:1"\n')
    other = home / "other.toml"
    other.write_text('verifier = "b:2"\nca = "ca.pem"\n')
    assert settled(config=str(other)).server == "b:2"
    assert settled(config=str(other)).ca == str(home / "ca.pem"), "beside the file that names it"
    monkeypatch.setenv(FILE_VARIABLE, str(other))
    assert settled().server == "b:2"


def test_a_draft_is_a_folder_beside_the_file_or_a_name(home: Path) -> None:
    write('draft = "mine"\n')
    assert settled().draft == "mine"
    (home / "pilotfish" / "mine").mkdir()
    assert settled().draft == str(home / "pilotfish" / "mine")


def test_a_key_that_others_can_read_is_refused() -> None:
    file = write('api_key = "pf-very-secret"\n', 0o640)
    error = refused()
    assert f"{file} holds api_key" in str(error)
    assert f"chmod 600 {file}" in str(error)
    assert "pf-very-secret" not in str(error)
    file.chmod(0o600)
    assert settled().api_key == "pf-very-secret"
    write('verifier = "a:1"\n', 0o644)
    assert settled().server == "a:1", "which is no secret"


def test_the_environments_key_goes_before_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    write('api_key = "pf-of-the-file"\n')
    monkeypatch.setenv("PILOTFISH_API_KEY", "pf-other")
    assert settled().api_key is None, "the credentials look there"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("verifier = ", "is not TOML"),
        ("colour = 1\n", "colour is not known; known are"),
        ('server = "a:1"\n', "server is not known"),
        ("window = true\n", "window is True; expected an integer"),
        ('pad = "yes"\n', "pad is 'yes'; expected true or false"),
        ('arm = "left"\n', "arm is 'left'; expected one of"),
        ("verifier = [1]\n", "verifier is [1]; expected text"),
    ],
)
def test_files_that_cannot_be_used(text: str, part: str) -> None:
    file = write(text)
    assert str(file) in str(refused())
    assert part in str(refused())


def test_a_wrong_key_is_not_shown() -> None:
    write("serve_key = 12345678\n")
    assert "12345678" not in str(refused())


def test_files_that_cannot_be_read(home: Path) -> None:
    assert "cannot be read" in str(refused(config=str(home / "none.toml")))
    assert "cannot be read" in str(refused(config=str(home)))
    (home / "big.toml").write_text("# " + "x" * 2**20)
    assert "more than 1048576 bytes" in str(refused(config=str(home / "big.toml")))
    (home / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in str(refused(config=str(home / "bytes.toml")))
