"""Who may import whom: the module map, held by the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "shared/pilotfish_core": {"torch", "onnxruntime", "grpc", "pilotfish", "pilotfish_cloud", "pilotfish_sim"},
    "shared/pilotfish_sim": {"torch", "onnxruntime", "grpc", "pilotfish", "pilotfish_cloud"},
    "shared/pilotfish_openai": {"torch", "onnxruntime", "grpc", "pilotfish", "pilotfish_cloud", "pilotfish_sim"},
    "device/pilotfish": {"pilotfish_cloud", "pilotfish_sim"},
    "cloud/pilotfish_cloud": {"pilotfish", "pilotfish_sim"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_the_right_way(package: str) -> None:
    files = [file for file in (ROOT / package).rglob("*.py") if not file.name.endswith("_pb2_grpc.py")]
    assert files or package.endswith("sim")
    for file in files:
        assert not imports(file) & FORBIDDEN[package], file


def test_the_device_needs_no_torch_outside_its_exporter() -> None:
    for file in (ROOT / "device" / "pilotfish").rglob("*.py"):
        if "export" not in file.parts:
            assert not imports(file) & {"torch", "transformers", "onnx", "safetensors"}, file


DOORS = {"fastapi", "starlette", "pydantic", "uvicorn"}


def test_only_the_devices_endpoint_needs_a_web_framework() -> None:
    for file in (ROOT / "device" / "pilotfish").rglob("*.py"):
        if "api" not in file.parts:
            assert not imports(file) & DOORS, file


def test_chatting_needs_no_web_framework() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(DOORS)})); "
    code += "import pilotfish.client, pilotfish.chat_command, pilotfish_openai.conversation"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
