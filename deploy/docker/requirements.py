"""What the verifier needs of pyproject.toml, one requirement a line: its extras, and of the rest what is not the
device's alone. For the images, which leave the device's package out.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("cloud", "otel", "quantized")
DEVICE_ONLY = ("onnxruntime",)


def requirements(text: str) -> list[str]:
    """Of a pyproject.toml's text."""
    project = tomllib.loads(text)["project"]
    needed = [*project["dependencies"], *(line for name in EXTRAS for line in project["optional-dependencies"][name])]
    return sorted(line for line in needed if re.split(r"[^A-Za-z0-9_.-]", line)[0] not in DEVICE_ONLY)


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]).read_text(encoding="utf-8"))))  # noqa: T201  # what it is for
