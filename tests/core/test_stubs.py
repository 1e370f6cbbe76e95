"""The committed stubs are what the protocol file says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path("pilotfish_core/proto/v1")


@pytest.mark.slow
def test_regenerating_the_stubs_changes_nothing(tmp_path: Path) -> None:
    generator = Path(sys.prefix) / "proto" / "bin" / "python"
    if not generator.exists():
        pytest.fail(f"{generator} is missing: `make test` (or `make proto`) sets it up")
    done = subprocess.run(["make", "proto", f"OUT={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / STUBS).iterdir())
    assert names == ["verifier_pb2.py", "verifier_pb2.pyi", "verifier_pb2_grpc.py", "verifier_pb2_grpc.pyi"]
    for name in names:
        assert (tmp_path / STUBS / name).read_text() == (ROOT / "shared" / STUBS / name).read_text(), name
