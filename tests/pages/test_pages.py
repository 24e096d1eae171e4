"""Compiles every C++ block and runs every shell block of README.md and docs/, so that no reader is shown what does not.

usage: test_pages.py SOURCE_ROOT SAFERING COMPILER...

A C++ block is a translation unit of its own: a reader should be able to paste it into a file. The shell blocks of a page
run one after another, in a directory that holds `model.safetensors`, with SAFERING as `safering`; it is empty where the
command is not built. Blocks that somebody else runs say so: `sh setup` is for a bare machine, and CI begins with it;
`sh install` is what tests/install builds users with; tests/python runs the Python blocks.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "cli")]
sys.dont_write_bytecode = True

import tap
from safetensors_files import Tensor, write_file

ROOT, SAFERING, *COMPILER = sys.argv[1:]
ROOT = pathlib.Path(ROOT)
del sys.argv[1:]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: language -> what each line of such a block begins with, where somebody else runs it
ELSEWHERE = {"sh setup": r"tools/\w+( |$)", "sh install": r"(meson|g\+\+|#)", "python": "", "cmake": "", "text": ""}


def blocks(page):
    """(line number, language, text) of each fenced block."""
    text = page.read_text()
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start()) + 1, match[1], match[2]


class Pages(unittest.TestCase):
    def compile(self, line, block):
        with tempfile.TemporaryDirectory() as directory:
            source = pathlib.Path(directory) / f"line_{line}.cpp"
            source.write_text(block)
            result = subprocess.run(
                [*COMPILER, "-std=c++23", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "include"),
                 str(source)], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)

    def run_shell(self, script):
        if not SAFERING:
            self.skipTest("the command safering is not built")
        # Not below /tmp by default: where the build is, direct I/O works more often.
        directory = pathlib.Path(tempfile.mkdtemp(prefix="pages-", dir=os.getcwd()))
        self.addCleanup(shutil.rmtree, directory)
        (directory / "bin").mkdir()
        (directory / "bin" / "safering").symlink_to(os.path.abspath(SAFERING))
        (directory / "work").mkdir()
        write_file(directory / "work" / "model.safetensors",
                   {"embed.weight": Tensor("BF16", [48, 64]), "layers.0.weight": Tensor("F32", [17, 33])}, {"format": "pt"})
        environment = os.environ | {"PATH": f"{directory / 'bin'}:{os.environ['PATH']}"}
        result = subprocess.run(["bash", "-eux", "-o", "pipefail", "-c", script], cwd=directory / "work", env=environment,
                                capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_every_block_is_run_by_somebody(self):
        for page in PAGES:
            for line, language, block in blocks(page):
                with self.subTest(page=page.name, line=line):
                    self.assertIn(language, {"cpp", "sh", *ELSEWHERE})
                    for command in block.splitlines():
                        self.assertRegex(command, f"^{ELSEWHERE.get(language, '')}")

    def test_links_lead_somewhere(self):
        for page in PAGES:
            prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
                if "://" not in target:
                    self.assertTrue((page.parent / target).exists(), f"{page.name}: {target}")

    def test_pages_are_linked_from_the_readme(self):
        readme = PAGES[0].read_text()
        self.assertEqual([page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme], [])


def add_cases(page):
    shell = ""
    for line, language, block in blocks(page):
        if language == "cpp":
            setattr(Pages, f"test_{page.stem}_line_{line}", lambda self, line=line, block=block: self.compile(line, block))
        elif language == "sh":
            shell += block
    if shell:
        setattr(Pages, f"test_{page.stem}_shell", lambda self: self.run_shell(shell))


for page in PAGES:
    add_cases(page)

if __name__ == "__main__":
    tap.main()
