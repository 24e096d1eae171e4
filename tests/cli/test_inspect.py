"""`safering inspect`: the tree, filters, sharding and alignment, on a terminal and in a pipe.

usage: test_inspect.py SAFERING_COMMAND
"""

import fcntl
import os
import pty
import struct
import subprocess
import termios

from command import COMMAND, CommandTest
from safetensors_files import Tensor, write_file, write_sharded

import tap

LAYERS = 12
MODEL = {
    "model.embed.weight": Tensor("BF16", [48, 64]),
    **{f"model.layers.{i}.{part}": tensor for i in range(LAYERS) for part, tensor in
       [("norm.weight", Tensor("F32", [64])), ("attn.weight", Tensor("BF16", [64, 64]))]},
    "optim/state/step": Tensor("I64", []),
}


class InspectTest(CommandTest):
    def model(self, tensors=MODEL):
        path = self.directory / "model.safetensors"
        write_file(path, tensors)
        return path

    def lines(self, *arguments):
        return [" ".join(line.split()) for line in self.good("inspect", *arguments).splitlines()]

    def on_a_terminal(self, columns, *arguments, **environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        with subprocess.Popen([COMMAND, "inspect", *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
                              env={**os.environ, "TERM": "xterm", **environment}) as process:
            os.close(theirs)
            output = b""
            while True:
                try:
                    block = os.read(ours, 65536)
                except OSError:  # the terminal has no writer any more
                    break
                if not block:
                    break
                output += block
        os.close(ours)
        self.assertEqual(process.returncode, 0, output)
        return output.decode().replace("\r\n", "\n")


class Tree(InspectTest):
    def test_counts_and_bytes(self):
        lines = self.lines(self.model(), "--tree")
        for line in ["├─ model. 25 105.0 KiB mixed", "│ ├─ embed.weight 1 6.0 KiB BF16 [48, 64]",
                     "└─ optim/state/step 1 8 B I64 []"]:
            self.assertIn(line, lines)

    def test_like_neighbours_are_one(self):
        lines = self.lines(self.model(), "--tree")
        self.assertIn(f"│ └─ layers. {2 * LAYERS} 99.0 KiB mixed", lines)
        self.assertIn(f"│ └─ 0-11. (12 alike) {2 * LAYERS} 99.0 KiB mixed", lines)
        self.assertIn("│ ├─ attn.weight 1 8.0 KiB BF16 [64, 64]", lines)

    def test_unlike_neighbours_are_not(self):
        model = {**MODEL, "model.layers.5.norm.weight": Tensor("F16", [64])}
        text = "\n".join(self.lines(self.model(model), "--tree"))
        for label in ["0-4. (5 alike)", "5. 2", "6-11. (6 alike)"]:
            self.assertIn(label, text)

    def test_numbers_are_in_their_order(self):
        model = {f"{i}.weight": Tensor("U8", [i + 1]) for i in range(12)}
        text = "".join(self.lines(self.model(model), "--tree"))
        self.assertLess(text.index(" 9.weight"), text.index(" 10.weight"))

    def test_depth(self):
        lines = self.lines(self.model(), "--tree", "--depth", "1")
        self.assertEqual([line.split()[1] for line in lines if line.startswith(("├", "└"))], ["model.", "optim/state/step"])
        self.assertNotIn("layers", "".join(lines))

    def test_a_name_that_is_also_a_part_of_names(self):
        tree = self.good_json("inspect", self.model({"a": Tensor("U8", [1]), "a.b": Tensor("U8", [2])}), "--tree")["tree"]
        self.assertEqual([(child["label"], child["bytes"]) for child in tree["children"]], [("a", 1), ("a.b", 2)])

    def test_json(self):
        tree = self.good_json("inspect", self.model(), "--tree")["tree"]
        self.assertEqual((tree["tensors"], tree["bytes"]), (len(MODEL), sum(len(t.data) for t in MODEL.values())))

        def names(node, prefix):
            prefix += node["label"]
            if "name" in node:
                self.assertEqual(node["name"], prefix)
                yield prefix
            for child in node.get("children", []):
                yield from names(child, prefix)

        self.assertEqual(sorted(names(tree, "")), sorted(MODEL))
        shallow = self.good_json("inspect", self.model(), "--tree", "--depth", "1")["tree"]
        self.assertNotIn("children", shallow["children"][0])

    def test_empty_parts(self):
        names = ["a..b", ".a", "a.", "."]
        tree = self.good_json("inspect", self.model({name: Tensor("U8", [1]) for name in names}), "--tree")["tree"]
        self.assertEqual(tree["tensors"], 4)


class Filter(InspectTest):
    def shown(self, *options):
        return [tensor["name"] for tensor in self.good_json("inspect", self.model(), *options)["tensors"]]

    def test_names(self):
        self.assertEqual(self.shown("--filter", "*.embed.*"), ["model.embed.weight"])
        self.assertEqual(self.shown("--filter", "embed"), [])
        self.assertEqual(self.shown("--filter", "optim*", "--filter", "*embed*"), ["model.embed.weight", "optim/state/step"])
        self.assertEqual(len(self.shown("--filter", "*.[0-3].norm.*")), 4)

    def test_dtypes_and_sizes(self):
        self.assertEqual(self.shown("--dtype", "i64"), ["optim/state/step"])
        self.assertEqual(len(self.shown("--dtype", "I64,F32")), LAYERS + 1)
        self.assertEqual(len(self.shown("--min-size", "8KiB")), LAYERS)
        self.assertEqual(len(self.shown("--max-size", "256")), LAYERS + 1)
        self.assertEqual(self.shown("--dtype", "F32", "--filter", "*.7.*"), ["model.layers.7.norm.weight"])

    def test_text_says_what_is_shown(self):
        path = self.model()
        self.assertIn("shown 6.0 KiB in 1 tensor", self.lines(path, "--filter", "*embed*"))
        self.assertIn("globs of whole names", self.good("inspect", path, "--filter", "embed"))
        self.assertIn("shown 6.0 KiB in 1 tensor", self.lines(path, "--filter", "*embed*", "--tree"))

    def test_options_after_the_path_and_before(self):
        self.assertIn("shown 8 B in 1 tensor", self.lines("--filter", "optim*", "--dtype", "I64", self.model()))

    def test_wrong_use(self):
        for options in [["--dtype", "FP16"], ["--depth", "2"], ["--tree", "--depth", "0"], ["--min-size", "big"]]:
            self.assertRegex(self.fails(2, "inspect", self.model(), *options), r"; try: safering inspect --help\n$")


class Sharding(InspectTest):
    def test_of_files(self):
        write_sharded(self.directory / "sharded", {"w": Tensor("F32", [16, 6])}, 0, 4)
        self.assertEqual(self.good_json("inspect", self.directory / "sharded")["tensors"][0]["sharding"], "4 along 0")
        self.assertIn(" 4 along 0\n", self.good("inspect", self.directory / "sharded"))

    def test_alignment(self):
        write_file(self.directory / "odd.safetensors", {"a": Tensor("U8", [1]), "b": Tensor("BF16", [3])})
        tensors = {t["name"]: t for t in self.good_json("inspect", self.directory / "odd.safetensors")["tensors"]}
        for tensor in tensors.values():
            begin = tensor["chunks"][0]["bytes"][0]
            self.assertEqual(tensor["chunks"][0]["alignment"], begin & -begin)
        self.assertIn("aligned   every tensor at ", self.good("inspect", self.directory / "odd.safetensors"))


class Terminal(InspectTest):
    def test_lines_fit(self):
        path = self.model({"long." * 30 + "weight": Tensor("U8", [1]), "short": Tensor("U8", [2])})
        for options in [[], ["--tree"]]:
            text = self.on_a_terminal(80, path, *options, NO_COLOR="1")
            table = text[text.index("\nname"):]
            for line in table.splitlines():
                self.assertLessEqual(len(line), 80)
            self.assertIn("…", table)
            self.assertNotIn("\x1b", text)
            self.assertNotIn("…", self.good("inspect", path, *options))

    def test_colour_only_there(self):
        path = self.model()
        self.assertIn("\x1b[1m", self.on_a_terminal(80, path))
        self.assertNotIn("\x1b", self.on_a_terminal(80, path, TERM="dumb"))
        self.assertNotIn("\x1b", self.good("inspect", path))


if __name__ == "__main__":
    tap.main()
