"""What the tests of the command share: runs of it, and checkpoints to run it on.

A test's file is called with the command as its first argument.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.dont_write_bytecode = True

from safetensors_files import Tensor, write_file

COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 else "safering"
TENSORS = {
    "embed.weight": Tensor("BF16", [48, 64]),
    "layers.0.weight": Tensor("F32", [17, 33]),
    "layers.0.bias": Tensor("F32", [33]),
    "steps": Tensor("I64", []),
    "empty": Tensor("U8", [0, 4]),
}


class CommandTest(unittest.TestCase):
    def setUp(self):
        # Not below /tmp by default: where the build is, direct I/O works more often.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="cli-", dir=os.getcwd()))
        self.addCleanup(shutil.rmtree, self.directory)

    def run_command(self, *arguments):
        return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True,
                              timeout=300, stdin=subprocess.DEVNULL)

    def good(self, *arguments):
        """Standard output of a run that must succeed in silence."""
        result = self.run_command(*arguments)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result)
        return result.stdout

    def good_json(self, *arguments):
        return json.loads(self.good(*arguments, "--json"))

    def fails(self, code, *arguments):
        """Standard error of a run that must fail with one line and no output."""
        result = self.run_command(*arguments)
        self.assertEqual((result.returncode, result.stdout), (code, ""), result)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("safering: "), result.stderr)
        return result.stderr

    def fails_json(self, code, *arguments):
        result = self.run_command(*arguments, "--json")
        self.assertEqual(result.returncode, code, result)
        self.assertNotEqual(result.stderr, "")
        return json.loads(result.stdout)

    def file(self, name="model.safetensors"):
        path = self.directory / name
        write_file(path, TENSORS, {"format": "pt"})
        return path

    def saved(self, *options):
        """A checkpoint that safering wrote, with a manifest."""
        path = self.directory / "saved"
        self.good("convert", self.file("source.safetensors"), path, *options)
        return path
