"""What the demo needs before it begins: an inflated target, an exported draft, verifiers running."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from pilotfish.processes import end_process
from pilotfish.signals import held
from pilotfish_core.errors import LocalError, ModelLoadError

START_TIMEOUT_S: Final = 300.0
MARK_FILE: Final = ".pilotfish-demo"  # in folders that a demo made and a later one may remove
# Of this size one step of the target takes 15 to 40 ms in bfloat16, on one thread of this decade's server CPUs.
HIDDEN_SIZE: Final = 1280
LAYERS: Final = 6


def find_reference(given: str | None) -> Path:
    """The folder of the reference pair: it lives in the source tree, not in the wheel.

    Raises ModelLoadError when it is not there.
    """
    if given is not None:
        folder = Path(given)
    else:
        candidates = (Path.cwd() / "reference", Path(__file__).resolve().parents[3] / "reference")
        folder = next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])
    for part in ("target", "draft"):
        if not (folder / part / "config.json").is_file():
            raise ModelLoadError(
                f"no reference pair in {folder} ({part}/config.json is missing): run the demo in a clone of the "
                "project, or name the folder with --reference"
            )
    return folder.resolve()


def digest_of(folder: Path, *more: str) -> str:
    """Names a prepared model by what it was made of."""
    digest = hashlib.sha256("\n".join(more).encode())
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def inflated_target(reference: Path, work: Path, layers: int = LAYERS) -> Path:
    """The reference target padded to a size at which a step costs what a step costs; made once for each depth."""
    source = reference / "target"
    arguments = ("--hidden-size", str(HIDDEN_SIZE), "--num-layers", str(layers), "--dtype", "bfloat16")
    prefix = "target-" if layers == LAYERS else f"target{layers}-"
    out = work / f"{prefix}{digest_of(source, *arguments)}"
    if not (out / "config.json").is_file():
        _replace_older(work, prefix)
        _run([sys.executable, "-m", "reference.inflate", str(source), str(out), *arguments], reference.parent)
        (out / MARK_FILE).touch()
    return out


def exported_draft(reference: Path, work: Path, quant: str, to: str = "onnx") -> Path:
    """The reference draft, quantised for ONNX Runtime (``to="onnx-web"``: in browsers); made once."""
    source = reference / "draft"
    prefix = f"draft-{quant}-" if to == "onnx" else f"draft-{to}-{quant}-"
    out = work / f"{prefix}{digest_of(source, quant)}"
    if not (out / "manifest.json").is_file():
        _replace_older(work, prefix)
        command = [sys.executable, "-m", "pilotfish", "export", str(source), "--out", str(out), "--quant", quant]
        command += ["--to", to]
        _run(command, reference.parent)
        (out / MARK_FILE).touch()
    return out


def _replace_older(work: Path, prefix: str) -> None:
    """Remove what earlier demos prepared. Other folders of such a name may be anybody's."""
    work.mkdir(parents=True, exist_ok=True)
    for older in work.glob(f"{prefix}*"):
        if (older / MARK_FILE).is_file() and not older.is_symlink():
            shutil.rmtree(older)


def _run(command: Sequence[str], folder: Path) -> None:
    process: subprocess.Popen[str] | None = None
    try:
        with held():
            process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate()
    except BaseException:
        if process is not None:
            end_process(process)  # properly: it has folders of its own to remove
        raise
    if process.returncode != 0:
        raise LocalError(f"{' '.join(command[1:4])} failed:\n{(errors or output).strip()[-2000:]}")


class VerifierProcess:
    """A verifier in a process of its own, on ports that the system chose. A context manager."""

    def __init__(self, model: Path, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "pilotfish_cloud", "serve", str(model), "--json"]
        self._command += ["--port", "0", "--http-port", "0", *arguments]
        self._command += ["--until-stdin-closes"]  # then it ends with this process, however that ends
        self._process: subprocess.Popen[str] | None = None
        self.address = ""
        self.http = ""
        self.fingerprint = ""

    def start(self) -> None:
        """Begin; ``wait_ready`` waits until it serves."""
        with held():
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for the ready line. Raises LocalError with what it said when it ended instead."""
        process = self._running()
        line = _read_line(process.stdout, time.monotonic() + timeout_s)
        if not line:
            process.kill()
            _, errors = process.communicate()
            raise LocalError(f"the verifier did not start: {errors.strip()[-2000:] or 'no answer in time'}")
        ready = json.loads(line)
        self.address, self.http, self.fingerprint = ready["address"], ready["http"], ready["fingerprint"]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._running().pid

    def kill(self) -> None:
        """kill -9: no good-bye to anyone."""
        process = self._running()
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End it properly, then for good."""
        process, self._process = self._process, None
        if process is None:
            return
        end_process(process)

    def __enter__(self) -> VerifierProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise LocalError("the verifier has not been started")
        return self._process


def _read_line(stream: IO[str] | None, deadline: float) -> str:
    """The next line, or what came before the end or the deadline."""
    if stream is None:
        return ""
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(deadline - time.monotonic(), 0))
        part = os.read(stream.fileno(), 4096) if ready else b""
        if not part:
            return ""
        data += part
    return data.decode()
