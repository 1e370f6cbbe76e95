"""The committed stubs are what the protocol file says."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from pilotfish_core.proto.v1 import verifier_pb2 as pb

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


def test_the_browsers_frames_are_generated_from_the_same_file() -> None:
    text = (ROOT / "mobile_demo/sdk/src/proto/verifier_pb.ts").read_text(encoding="utf-8")
    found = re.search(r'fileDesc\("([^"]+)"', text)
    assert found is not None
    data = base64.b64decode(found[1] + "=" * (-len(found[1]) % 4))
    ours = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert descriptor_pb2.FileDescriptorProto.FromString(data) == ours, "`make mobile-proto` writes it anew"
