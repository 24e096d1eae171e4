"""Compiles every C++ block of README.md, so that no reader is shown code that does not.

usage: test_readme.py README INCLUDE_DIRECTORY COMPILER...

A block is a translation unit of its own: a reader should be able to paste it into a file.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.dont_write_bytecode = True

import tap

README, INCLUDE, *COMPILER = sys.argv[1:]
del sys.argv[1:]


def blocks():
    """(line number, text) of each block."""
    text = pathlib.Path(README).read_text()
    for match in re.finditer(r"^```cpp\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start()) + 1, match[1]


class Readme(unittest.TestCase):
    def compile(self, line, block):
        with tempfile.TemporaryDirectory() as directory:
            source = pathlib.Path(directory) / f"readme_line_{line}.cpp"
            source.write_text(block)
            result = subprocess.run(
                [*COMPILER, "-std=c++23", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE,
                 str(source)], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)


def add_case(line, block):
    setattr(Readme, f"test_block_at_line_{line}", lambda self: self.compile(line, block))


for line, block in blocks():
    add_case(line, block)

if __name__ == "__main__":
    tap.main()
