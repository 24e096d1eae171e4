"""`safering diff`.

usage: test_diff.py SAFERING_COMMAND
"""

from command import TENSORS, CommandTest
from safetensors_files import Tensor, write_file, write_sharded

import tap


class Diff(CommandTest):
    def test_equal(self):
        write_sharded(self.directory / "sharded", TENSORS, 0, 3)
        report = self.good_json("diff", self.file(), self.directory / "sharded")
        self.assertEqual((report["equal"], report["differences"], report["tensors"]), (True, [], len(TENSORS)))
        self.assertIn("the same 5 tensors", self.good("diff", self.file(), self.directory / "sharded"))

    def test_saved_ones_are_not_read(self):
        saved = self.saved()
        self.good("convert", saved, self.directory / "again")
        report = self.good_json("diff", saved, self.directory / "again")
        self.assertEqual(report["read_bytes"], 0)
        self.assertGreater(self.good_json("diff", saved, self.directory / "again", "--read-all")["read_bytes"], 0)

    def test_different(self):
        changed = dict(TENSORS)
        data = bytearray(changed["layers.0.weight"].data)
        data[4 * (2 * 33 + 7)] ^= 1
        changed["layers.0.weight"] = Tensor("F32", [17, 33], bytes(data))
        changed["evil\x1b[31m"] = Tensor("U8", [1])
        del changed["steps"]
        write_file(self.directory / "changed.safetensors", changed)
        arguments = ["diff", self.file(), self.directory / "changed.safetensors"]
        result = self.run_command(*arguments)
        self.assertEqual((result.returncode, result.stderr), (1, ""))
        self.assertEqual(len(result.stdout.splitlines()), 3)
        self.assertIn("values     layers.0.weight: 1 of 561 elements, first at [2, 7]\n", result.stdout)
        self.assertIn("only in A  steps\n", result.stdout)
        self.assertNotIn("\x1b", result.stdout)
        self.assertEqual(len(self.run_command(*arguments, "--no-values").stdout.splitlines()), 2)

    def test_absent(self):
        self.assertIn("absent", self.fails(1, "diff", self.file(), self.directory / "absent"))


if __name__ == "__main__":
    tap.main()
