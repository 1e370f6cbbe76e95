"""What runs on this machine, and why not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pilotfish
from pilotfish.cli import main


def test_what_tests_need_is_usable() -> None:
    found = pilotfish.availability()
    assert set(found) == {"onnx", "coreml", "export-onnx", "export-coreml", "genai"}
    for name in ("onnx", "export-onnx", "export-coreml"):
        assert found[name].usable, found[name]
        assert found[name].reason == ""
        assert found[name].version
    assert not found["genai"].usable
    assert all(runtime.usable != bool(runtime.reason) for runtime in found.values())


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("torch", "onnx") else real(name))
    found = pilotfish.availability()["export-onnx"]
    assert not found.usable
    assert found.reason == "not installed: torch, onnx; pip install 'pilotfish[export]'"


def test_a_mac_without_coremltools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    assert pilotfish.availability()["coreml"].usable
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pilotfish.availability()["coreml"].reason == "not installed: coremltools; pip install 'pilotfish[coreml]'"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runtimes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["onnx"]["usable"] is True
    assert main(["runtimes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("yes  onnx ")
    assert any("no drafter of Pilotfish uses onnxruntime-genai" in line for line in lines)


def test_nothing_heavy_is_imported_for_it() -> None:
    heavy = ("torch", "onnxruntime", "coremltools", "transformers", "onnx")
    code = f"import sys, pilotfish; pilotfish.availability(); print([n for n in {heavy} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
