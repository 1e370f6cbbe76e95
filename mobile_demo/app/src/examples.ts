/** Beginnings for the reference pair, which was trained on Python's standard library: code completion, not chat. */

export interface Example {
  readonly name: string;
  readonly prompt: string;
}

export const EXAMPLES: readonly Example[] = [
  { name: "class Stack", prompt: 'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n' },
  { name: "def main", prompt: "import os\nimport sys\n\n\ndef main(argv=None):\n" },
  { name: "unit test", prompt: "import unittest\n\n\nclass TestStringMethods(unittest.TestCase):\n\n    def test_upper(self):\n" },
  { name: "read a file", prompt: 'def read_lines(path):\n    """Return the lines of a file."""\n    with open(path) as file:\n' },
];
