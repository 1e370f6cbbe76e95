"""The results of the exactness benchmark in a file, and what they depend on."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime
import torch

from benchmarks.exactness_runs import Bench
from benchmarks.exactness_table import markdown
from pilotfish.bench.machine import load, machine
from pilotfish.demo.stage import digest_of

ROOT: Final = Path(__file__).resolve().parent.parent
APART: Final = {"demo", "export", "http", "cli.py", "edge.py"}  # sources that take no part in an answer
PARTS: Final = ("deterministic", "reference", "normal")


class Report:
    """The results so far, in a file that is rewritten after each cell. Those of an earlier run under the same settings
    are taken over.
    """

    def __init__(self, file: Path, bench: Bench, arguments: Sequence[str]) -> None:
        self.file = file
        self.value: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks.exactness", *arguments]),
            "machine": {
                **machine(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "load_at_end": None,
            },
            "settings": settings_of(bench),
            "draft": bench.draft.name,
            "design": {},
            "alone": [],
            **{part: [] for part in PARTS},
            "problems": [],
        }
        self._ids: set[str] = set()
        if file.is_file():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            if earlier.get("settings") == self.value["settings"]:
                self._take_over(earlier)

    def _take_over(self, earlier: dict[str, Any]) -> None:
        self.value["design"] = earlier["design"]
        for part in ("alone", *PARTS):
            for record in earlier[part]:
                same_draft = record.get("draft_model") in (None, self.value["draft"])
                if record["code"] == self.value["settings"]["code"] and same_draft:
                    self.add(part, record)

    def has(self, identity: str) -> bool:
        """Whether this result is there."""
        return identity in self._ids

    def add(self, part: str, record: dict[str, Any]) -> None:
        """Take in a result, unless it is there, and write the file."""
        if record["id"] not in self._ids:
            self._ids.add(record["id"])
            self.value[part].append(record)
            self.value["problems"] += [f"{record['name']}: {problem}" for problem in record.get("problems", ())]
            self.write()

    def finish(self, seconds: float) -> None:
        """Note the end, write the file and the table."""
        self.value["machine"]["load_at_end"] = load()
        self.value["seconds"] = round(seconds, 1)
        self.write()
        self.file.with_suffix(".md").write_text(markdown(self.value), encoding="utf-8")

    def write(self) -> None:
        """Write the file, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.value, indent=1) + "\n", encoding="utf-8")
        part.replace(self.file)


def settings_of(bench: Bench) -> dict[str, Any]:
    """What a result depends on."""
    return {
        "target": digest_of(bench.target),
        "prompts": len(bench.prompts),
        "tokens": bench.tokens,
        "seed": bench.seed,
        "questions": bench.digest(),
        "code": code_digest(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }


def code_digest() -> str:
    """Of the sources that take part in an answer."""
    digest = hashlib.sha256()
    for folder in ("shared/pilotfish_core", "device/pilotfish", "cloud/pilotfish_cloud"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if APART & {*file.relative_to(ROOT).parts}:
                continue
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
