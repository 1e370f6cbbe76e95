"""Modules of the page that need no browser: their types, and their own tests under Node."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.slow
MOBILE: Final = ROOT / "mobile_demo"
PATIENCE_S: Final = 120.0


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=MOBILE, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("project", ["tsconfig.json", "tsconfig.worker.json"])
def test_types(project: str) -> None:
    run("node_modules/.bin/tsc", "-p", f"app/{project}")


def test_modules(tmp_path: Path) -> None:
    run("node_modules/.bin/tsc", "-p", "app/tsconfig.test.json", "--outDir", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    tests = sorted((tmp_path / "app" / "test").glob("*.test.js"))
    assert len(tests) == len(list((MOBILE / "app" / "test").glob("*.test.ts"))) > 0
    assert "# fail 0" in run("node", "--test", "--test-reporter=tap", *tests)


def test_the_script_is_small(tmp_path: Path) -> None:
    """The build fails above the limit; it says what there is."""
    *_, last = run("node", "app/build.mjs", tmp_path / "dist").splitlines()
    assert last.startswith("JavaScript without the runtime: ")
    assert 20 < float(last.split()[4]) < 150
