"""Simulated runs that write traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pilotfish_core.trace import TraceWriter
from pilotfish_sim.run import Traces, simulate
from pilotfish_sim.scenario import Scenario


def traced(values: dict[str, Any], folder: Path, name: str = "run", clock_s: int = 0) -> list[Path]:
    """Run a scenario; the traces of its devices and of its replicas, begun at ``clock_s`` of the machine's clock."""
    files = [folder / f"{name}.jsonl", folder / f"{name}.cloud.jsonl"]
    with files[0].open("w") as device, files[1].open("w") as cloud:
        writers = [
            TraceWriter(file.write, side=side, now=0.0, key=b"test")
            for file, side in ((device, "device"), (cloud, "cloud"))
        ]
        simulate(Scenario.of(values), traces=Traces(*writers))
        for writer in writers:
            writer.end()
    for file in files:
        header, rest = file.read_text().split("\n", 1)
        file.write_text(json.dumps(json.loads(header) | {"clock_us": clock_s * 10**6}) + "\n" + rest)
    return files
