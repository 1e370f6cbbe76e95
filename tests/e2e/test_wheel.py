"""What an app developer gets: the wheel in a fresh environment, and the README's first lines of code in it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Verifier, connected

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
MAX_BYTES = 190e6  # numpy and onnxruntime are 120 MB of it, gRPC 18, tokenizers and what it needs 30
HEAVY = ("torch", "transformers", "onnx", "fastapi", "uvicorn", "coremltools", "redis")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT))
    (wheel,) = folder.glob("pilotfish-*.whl")
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = folder / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    run(str(python), "-m", "pip", "install", "--quiet", "--no-compile", "-c", constraints, str(wheel))
    return python


def run(*command: str) -> str:
    """Outside of this project's tree and without its search path. Returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=Path(command[0]).parent, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


async def test_it_is_small_and_without_torch(fresh: Path) -> None:
    (packages,) = fresh.parent.parent.glob("lib/python3*/site-packages")
    names = {entry.name.lower() for entry in packages.iterdir()}
    assert not names.intersection(HEAVY)
    own = [entry for entry in packages.iterdir() if not entry.name.startswith(("pip", "setuptools", "pkg_resources"))]
    size = sum(file.stat().st_size for entry in own for file in (entry.rglob("*") if entry.is_dir() else [entry]))
    assert size < MAX_BYTES


async def test_the_package_itself_imports_nothing_heavy(fresh: Path) -> None:
    code = "import pilotfish, sys; print(sorted({'numpy', 'grpc', 'onnxruntime', 'tokenizers'} & set(sys.modules)))"
    assert run(str(fresh), "-c", code).strip() == "[]"


async def test_the_quickstart_of_the_readme_runs(fresh: Path, verifier: Verifier, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "pilotfish.Client(" in block][:1]
    assert '"verifier:50051"' in code
    script = tmp_path / "quickstart.py"
    script.write_text(code.replace('"verifier:50051"', repr(verifier.address)), encoding="utf-8")
    output = await asyncio.to_thread(run, str(fresh), str(script))
    async with connected(verifier) as client:
        stream = await client.generate("def quicksort(", max_tokens=128, temperature=0.8, seed=7)
        expected = (await stream.result()).text
    assert output.startswith(expected)
    assert float(output.removeprefix(expected)) >= 1  # mean acceptance length
