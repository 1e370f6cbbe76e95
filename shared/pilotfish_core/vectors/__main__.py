"""``python -m pilotfish_core.vectors``: write ``sampling.json`` anew. With ``FOLDER [TOKENIZER]``: write there the many
vectors that are not kept (noise, sampling, frames, scripts of the device core, and with a tokenizer's folder texts).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.vectors import PATH, build, dumps
from pilotfish_core.vectors.frames import frame_vectors
from pilotfish_core.vectors.many import noise_vectors, sampling_vectors
from pilotfish_core.vectors.scripts import script_vectors
from pilotfish_core.vectors.texts import text_vectors


def main(arguments: list[str]) -> None:
    """See the module."""
    if not arguments:
        PATH.write_text(dumps(build()), encoding="utf-8")
        return
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Any]] = {
        "noise": noise_vectors,
        "sampling": sampling_vectors,
        "frames": frame_vectors,
        "scripts": script_vectors,
    }
    if len(arguments) > 1:
        tokenizer = Tokenizer.load(arguments[1])
        makers["texts"] = lambda: text_vectors(tokenizer)
    for name, make in makers.items():
        (folder / f"{name}.json").write_text(json.dumps(make(), separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
