"""The prompts: short beginnings of Python files, which the reference pair can go on with, or a file of the user's."""

from __future__ import annotations

import json
import re
from typing import Final

from pilotfish.files import read_prompt
from pilotfish_core.errors import InvalidParameter

WARM_UP: Final = "import json\n\n\ndef load(path):\n"  # none of the others begins like it
PROMPTS: Final = (
    'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n',
    "import os\nimport sys\n\n\ndef main(argv=None):\n",
    "import unittest\n\n\nclass TestStringMethods(unittest.TestCase):\n\n    def test_upper(self):\n",
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n",
    'class Queue:\n    """A queue for threads."""\n\n    def put(self, item, block=True, timeout=None):\n',
    "import socket\n\n\nclass Server:\n    def __init__(self, host, port):\n        self.host = host\n",
    "from collections import OrderedDict\n\n\nclass Cache:\n    def __init__(self, maxsize=128):\n",
    'def read_lines(filename, encoding="utf-8"):\n    """Return the lines of a file."""\n    with open(filename',
    "import threading\n\n\nclass Worker(threading.Thread):\n    def run(self):\n",
    "class Node:\n    def __init__(self, value, left=None, right=None):\n        self.value = value\n",
    'import re\n\n_pattern = re.compile(r"[a-z]+")\n\n\ndef tokenize(text):\n',
    "class Error(Exception):\n    pass\n\n\nclass ParseError(Error):\n    def __init__(self, message):\n",
    "import argparse\n\n\ndef parse_args():\n    parser = argparse.ArgumentParser(\n",
    'class Vector:\n    __slots__ = ("x", "y")\n\n    def __add__(self, other):\n',
    "import asyncio\n\n\nasync def handle(reader, writer):\n    data = await reader.read(100)\n",
    'def format_time(seconds):\n    """Return a string for a number of seconds."""\n    minutes',
    "import datetime\n\n\nclass Date:\n    def __init__(self, year, month, day):\n",
    'class Message:\n    """An email message."""\n\n    def get(self, name, default=None):\n',
    "import logging\n\nlogger = logging.getLogger(__name__)\n\n\nclass Handler:\n    def emit(self, record):\n",
    "def gcd(a, b):\n    while b:\n",
)
_BETWEEN: Final = re.compile(r"^---[ \t]*(?:\n|\Z)", re.MULTILINE)


def builtin(count: int) -> tuple[str, ...]:
    """The first ``count`` of ours."""
    return PROMPTS[:count]


def from_file(file: str) -> tuple[str, ...]:
    """A JSON list of strings, or plain text with lines of ``---`` between prompts. Raises InvalidParameter."""
    name = f"--prompt-file {file}"
    text = read_prompt(name, file)
    prompts = _listed(name, text)
    if prompts is None:
        prompts = _BETWEEN.split(text)
        if len(prompts) > 1 and not prompts[-1]:
            prompts.pop()  # the file ends with a separator
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise InvalidParameter.of(f"prompt {index + 1} of {name}", prompt, "some text")
    return tuple(prompts)


def _listed(name: str, text: str) -> list[str] | None:
    """What a JSON list holds; None where the text is none, as a prompt that happens to begin with a bracket."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    if not value or not all(isinstance(prompt, str) for prompt in value):
        raise InvalidParameter.of(name, value, "a JSON list of strings, or text with lines of --- between prompts")
    return value
