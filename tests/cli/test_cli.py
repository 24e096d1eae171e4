"""The command as its users see it: exit codes, what stands on which stream, and what it does to files.

usage: test_cli.py SAFERING_COMMAND
"""

import json
import os
import pty
import struct
import subprocess

from command import COMMAND, TENSORS, CommandTest
from safetensors_files import Tensor, read_directory, write_file, write_indexed, write_raw, write_sharded

import tap

SUBCOMMANDS = ["probe", "inspect", "verify", "diff", "list", "prune", "recover", "convert", "bench", "completion", "man"]


class Usage(CommandTest):
    def test_version(self):
        self.assertRegex(self.good("--version"), r"^safering \d+\.\d+\.\d+\n$")

    def test_help_of_each_subcommand_has_an_example(self):
        for arguments in [[], *[[name] for name in SUBCOMMANDS]]:
            self.assertIn("Example: safering", self.good(*arguments, "--help"))

    def test_wrong_use_is_2(self):
        wrong = [
            [], ["frobnicate"], ["--frobnicate"], ["inspect"], ["verify"], ["convert", "only-source"],
            ["diff", "a"], ["diff", "a", "b", "c"], ["list"], ["prune"], ["prune", "a"], ["prune", "a", "--keep-last", "0"], ["prune", "a", "--keep-last", "-1"],
            ["prune", "a", "--keep-last", "1", "--keep-every", "0"], ["recover"], ["recover", "a", "b"],
            ["completion"], ["completion", "tcsh"], ["man", "a"], ["bench"], ["probe", "a", "b"], ["inspect", "a", "--frobnicate"],
            ["verify", "a", "--backend", "magic"],
            ["convert", "a", "b", "--files", "0"], ["convert", "a", "b", "--files", "many"],
            ["convert", "a", "b", "--files", "2", "--max-file-size", "5GB"],
            *[["convert", "a", "b", "--max-file-size", size]
              for size in ["0", "-5", "5XB", "GB", "1e3", "5 G iB", "", "nan", "9999999999TB"]],
            *[["convert", "a", "b", "--dtype", dtype] for dtype in ["I64", "F8_E4M3", "half", ""]],
            ["convert", "a", "b", "--keep-dtype", "x"],
            *[["convert", "a", "b", "--rename", rule]
              for rule in ["", "a", "=b", "s/a", "s/a/b", "s//b/", "s/a/b/x", "s/(/b/", "s/[z-a]/b/g"]],
            ["inspect", "a", "--min-size", "2MiB", "--max-size", "1MiB"],
            ["prune", "a", "--keep-last", "1", "--prefix", "a/b"],
            ["bench", ".", "--ranks", "0"], ["bench", ".", "--shard-dim", "-1"],
            ["bench", ".", "--size", "big"], ["bench", ".", "--repeat", "0"], ["bench", ".", "--depth", "0"],
            *[["bench", ".", "--block", size] for size in ["3MiB", "8MiB", "2KiB", "big"]],
            *[["bench", ".", "--request", size] for size in ["1KiB", "big"]],
        ]
        for arguments in wrong:
            with self.subTest(arguments=arguments):
                self.assertRegex(self.fails(2, *arguments), r"; try: safering( [a-z]+)? --help\n$")

    def test_the_root_directory_is_no_target(self):
        source = self.file("source.safetensors")
        self.assertIn("root directory", self.fails(1, "convert", source, "/"))
        self.assertIn("root directory", self.fails(1, "convert", source, "/usr/.."))

    def test_a_mistyped_command_is_guessed(self):
        self.assertIn('"verfy"; did you mean verify?', self.fails(2, "verfy", "a"))
        self.assertNotIn("did you mean", self.fails(2, "frobnicate"))

    def test_a_mistyped_option_is_guessed(self):
        self.assertIn("--strct; did you mean --strict?", self.fails(2, "verify", "a", "--strct"))
        self.assertIn("did you mean --max-file-size?", self.fails(2, "convert", "a", "b", "--max-filesize=5GB"))
        self.assertNotIn("did you mean", self.fails(2, "verify", "a", "--frobnicate"))

    def test_no_command(self):
        for arguments in [[], ["-x"]]:
            self.assertIn("expected a command: probe, inspect,", self.fails(2, *arguments))

    def test_an_empty_path(self):
        for arguments in [["inspect", ""], ["verify", ""], ["diff", "a", ""], ["list", ""], ["recover", ""],
                          ["prune", "", "--keep-last", "1"], ["convert", "", "b"], ["convert", "a", ""], ["bench", ""],
                          ["probe", ""]]:
            self.assertIn("the path is empty", self.fails(2, *arguments))

    def test_wrong_use_as_json(self):
        self.assertIn("frobnicate", self.fails_json(2, "inspect", "a", "--frobnicate")["error"]["message"])


class Probe(CommandTest):
    def test_text(self):
        text = self.good("probe", self.directory)
        for word in ["backend", "file system", "O_DIRECT", "fallocate", "huge pages", "limits", "tuning", "advice"]:
            self.assertIn(word, text)

    def test_json(self):
        report = self.good_json("probe", self.directory)
        self.assertIn(report["reactor"]["backend"], ["io_uring", "threads"])
        self.assertNotEqual(report["reactor"]["reason"], "")
        self.assertNotEqual(report["file_system"]["type"], "")
        for field in ["memory_alignment", "offset_alignment"]:
            self.assertGreater(report["file_system"][field], 0)
        self.assertIn(report["huge_pages"]["granted"], [True, False])
        self.assertIsInstance(report["advice"], list)

    def test_advice_says_what_to_type(self):
        result = subprocess.run(["bash", "-c", 'ulimit -n 64 -l 64 && exec "$0" probe "$1"', COMMAND, self.directory],
                                capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result)
        self.assertRegex(result.stdout, r"advice +64 files may be open .*ulimit -n 4096\n")
        self.assertRegex(result.stdout, r"advice +memory that may be locked is 64.0 KiB.*ulimit -l 8192")

    def test_threads_are_always_there(self):
        report = self.good_json("probe", self.directory, "--backend", "threads")
        self.assertEqual(report["reactor"]["backend"], "threads")

    def test_no_such_directory(self):
        self.assertIn("absent", self.fails(1, "probe", self.directory / "absent"))


class Inspect(CommandTest):
    def check_tensors(self, report):
        found = {tensor["name"]: tensor for tensor in report["tensors"]}
        self.assertEqual(set(found), set(TENSORS))
        for name, tensor in TENSORS.items():
            self.assertEqual(found[name]["dtype"], tensor.dtype)
            self.assertEqual(found[name]["shape"], tensor.shape)
            self.assertEqual(found[name]["bytes"], len(tensor.data))
        self.assertEqual(report["tensor_bytes"], sum(len(t.data) for t in TENSORS.values()))

    def test_single_file(self):
        report = self.good_json("inspect", self.file())
        self.check_tensors(report)
        self.assertEqual(report["source"], "single file")
        self.assertEqual(report["files"][0]["metadata"], {"format": "pt"})
        self.assertEqual(report["tensors"][0]["chunks"][0]["file"], "model.safetensors")

    def test_text_names_every_tensor(self):
        text = self.good("inspect", self.file())
        for name in TENSORS:
            self.assertIn(name, text)
        self.assertRegex(text, r"embed.weight +BF16 +\[48, 64\] +6.0 KiB")

    def test_directory(self):
        write_file(self.directory / "a.safetensors", TENSORS)
        report = self.good_json("inspect", self.directory)
        self.check_tensors(report)
        self.assertEqual(report["source"], "directory")

    def test_index(self):
        names = sorted(TENSORS)
        path = self.directory / "indexed"
        write_indexed(path, {
            "model-00001-of-00002.safetensors": {n: TENSORS[n] for n in names[:2]},
            "model-00002-of-00002.safetensors": {n: TENSORS[n] for n in names[2:]},
        })
        # What the index does not list is not part of the checkpoint.
        write_file(path / "stray.safetensors", {"stray": Tensor("U8", [3])})
        report = self.good_json("inspect", path)
        self.check_tensors(report)
        self.assertEqual(report["source"], "index")
        self.assertEqual(len(report["files"]), 2)

    def test_sharded(self):
        path = self.directory / "sharded"
        write_sharded(path, TENSORS, 0, 3)
        report = self.good_json("inspect", path)
        self.check_tensors(report)
        chunks = {t["name"]: t["chunks"] for t in report["tensors"]}["layers.0.weight"]
        self.assertEqual([c["offsets"] for c in chunks], [[0, 0], [6, 0], [12, 0]])
        self.assertEqual([c["sizes"] for c in chunks], [[6, 33], [6, 33], [5, 33]])
        self.assertRegex(self.good("inspect", path),
                         r"at \[12, 0\] +\[5, 33\] .*  shard-00003-model-00001-of-00001.safetensors\n")

    def test_manifest(self):
        report = self.good_json("inspect", self.saved())
        self.check_tensors(report)
        self.assertEqual(report["source"], "manifest")
        self.assertRegex(report["attempt"], r"^[0-9a-f]{32}$")
        self.assertTrue(report["digests"])

    def test_absent(self):
        self.assertIn("absent", self.fails(1, "inspect", self.directory / "absent"))
        error = self.fails_json(1, "inspect", self.directory / "absent")["error"]
        self.assertIn("absent", error["message"])

    def test_broken_header_names_file_and_tensor(self):
        header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'
        write_raw(self.directory / "broken.safetensors", header, bytes(4))
        message = self.fails(1, "inspect", self.directory / "broken.safetensors")
        self.assertIn("broken.safetensors", message)
        self.assertIn('"a"', message)

    def test_control_characters_do_not_reach_the_terminal(self):
        path = self.directory / "names.safetensors"
        write_file(path, {"evil\x1b[2J\nname": Tensor("U8", [1])}, {"key\x07": "\x1b[31m"})
        text = self.good("inspect", path)
        for character in "\x1b\x07":
            self.assertNotIn(character, text)
        self.assertEqual(self.good_json("inspect", path)["tensors"][0]["name"], "evil\x1b[2J\nname")


class Verify(CommandTest):
    def flip(self, path, at):
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    def test_foreign_file_is_good_but_unchecked(self):
        report = self.good_json("verify", self.file())
        self.assertTrue(report["good"])
        self.assertEqual(report["verified_bytes"], 0)
        self.assertNotEqual(report["unchecked"], [])

    def test_a_shard_alone_is_neither_damaged_nor_a_whole(self):
        for i, at in enumerate((0, 2)):
            info = json.dumps({"w": {"saved_offsets": [at, 0]}})
            write_file(self.directory / f"shard-{i + 1:05}-model-00001-of-00001.safetensors",
                       {"w": Tensor("F32", [2, 10])}, {"DCP_SHARDING_INFO": info, "DCP_VERSION": "1.0"})
        self.assertEqual(self.good_json("inspect", self.directory)["tensors"][0]["shape"], [4, 10])
        for file in sorted(self.directory.iterdir()):
            report = self.good_json("verify", file)
            self.assertTrue(report["good"])
            self.assertIn("DCP_SHARDING_INFO", " ".join(report["unchecked"]))
            self.assertEqual(self.good_json("inspect", file)["tensors"][0]["shape"], [2, 10])
        out = self.good("convert", sorted(self.directory.iterdir())[0], self.directory / "out")
        self.assertIn("may hold parts of tensors", out)

    def test_a_file_of_a_checkpoint_alone_says_what_it_is_not_held_against(self):
        path = self.saved()
        file = next(path.glob("*.safetensors"))
        unchecked = " ".join(self.good_json("verify", file)["unchecked"])
        self.assertIn("verify the directory", unchecked)
        self.assertNotIn("is not there", unchecked)

    def test_saved_checkpoint_is_verified_to_the_last_byte(self):
        path = self.saved()
        report = self.good_json("verify", path)
        self.assertEqual(report["verified_bytes"], sum(len(t.data) for t in TENSORS.values()))
        self.assertIn("good", self.good("verify", path))

    def test_a_changed_byte_is_found(self):
        path = self.saved()
        embedding = {t["name"]: t for t in self.good_json("inspect", path)["tensors"]}["embed.weight"]
        chunk = embedding["chunks"][0]
        self.flip(path / chunk["file"], chunk["bytes"][0] + 1000)
        result = self.run_command("verify", path)
        self.assertEqual(result.returncode, 1)
        self.assertIn(chunk["file"], result.stdout)
        self.assertIn("damaged", result.stderr)
        report = self.fails_json(1, "verify", path)
        self.assertFalse(report["good"])
        self.assertEqual(len(report["findings"]), 1)
        self.assertIn("changed", report["findings"][0]["message"])

    def test_a_shortened_file_is_found(self):
        path = self.saved()
        file, = path.glob("model-*.safetensors")
        os.truncate(file, file.stat().st_size - 1)
        result = self.run_command("verify", path)
        self.assertEqual(result.returncode, 1)
        self.assertIn(file.name, result.stdout + result.stderr)

    def test_a_lost_file_is_found(self):
        path = self.saved("--files", "2")
        file = sorted(path.glob("model-*.safetensors"))[1]
        file.unlink()
        result = self.run_command("verify", path)
        self.assertEqual(result.returncode, 1)
        self.assertIn(file.name, result.stdout + result.stderr)

    def test_a_lost_shard_is_found(self):
        path = self.directory / "sharded"
        write_sharded(path, TENSORS, 0, 3)
        (path / "shard-00002-model-00001-of-00001.safetensors").unlink()
        result = self.run_command("verify", path)
        self.assertEqual(result.returncode, 1)
        self.assertIn("embed.weight", result.stdout + result.stderr)

    def test_absent(self):
        self.fails(1, "verify", self.directory / "absent")

    def test_strict_refuses_links(self):
        path = self.directory / "linked"
        path.mkdir()
        (path / "model.safetensors").symlink_to(self.file("target.safetensors"))
        self.good("verify", path)
        self.assertEqual(self.run_command("verify", path, "--strict").returncode, 1)

    def test_progress_on_a_terminal_only(self):
        path = self.saved()
        self.good("verify", path)
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = subprocess.run([COMMAND, "verify", str(path)], stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        self.assertEqual(process.returncode, 0)
        self.assertIn(b"verify: ", os.read(master, 4096))


class Convert(CommandTest):
    def test_single_file_to_directory(self):
        path = self.saved()
        self.assertEqual(read_directory(path), TENSORS)
        self.assertEqual([p.name for p in path.glob("*.safetensors")],
                         ["model-00001-of-00001.safetensors"])

    def test_shards_become_whole_tensors(self):
        for dimension in [0, 1]:
            source = self.directory / f"sharded-{dimension}"
            write_sharded(source, TENSORS, dimension, 3)
            before = {p.name: p.read_bytes() for p in source.iterdir()}
            self.good("convert", source, self.directory / f"whole-{dimension}")
            self.assertEqual(read_directory(self.directory / f"whole-{dimension}"), TENSORS)
            self.assertEqual({p.name: p.read_bytes() for p in source.iterdir()}, before)

    def test_files(self):
        source = self.file("source.safetensors")
        # One tensor outweighs the others together, so equal sizes cannot be had; numbers may not be skipped.
        for wanted, files in [(1, 1), (2, 2), (3, 3), (5, 5), (9, 5)]:
            with self.subTest(wanted=wanted):
                path = self.directory / f"in-{wanted}"
                self.good("convert", source, path, "--files", wanted)
                self.assertEqual(read_directory(path), TENSORS)
                self.assertEqual(sorted(p.name for p in path.glob("*.safetensors")),
                                 [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)])

    def test_max_file_size(self):
        tensors = {f"t{i}": Tensor("U8", [16000]) for i in range(6)}
        write_file(self.directory / "six.safetensors", tensors)
        # With a padded header of 4096 bytes, two tensors make 36,096 bytes and three 52,096: 52 kB is too
        # little for three where 52 KiB is enough. A tensor above the limit stands alone.
        for size, files in [("52kB", 3), ("0.052 mb", 3), ("52000", 3), ("52KiB", 2), ("52Ki", 2),
                            ("100", 6), ("1GB", 1)]:
            with self.subTest(size=size):
                path = self.directory / f"in-{size}"
                report = self.good_json("convert", self.directory / "six.safetensors", path,
                                        "--max-file-size", size)
                self.assertEqual(read_directory(path), tensors)
                self.assertEqual(report["files"], files)

    def test_both_backends(self):
        for backend in ["threads", "auto"]:
            path = self.directory / backend
            report = self.good_json("convert", self.file(), path, "--backend", backend)
            self.assertEqual(read_directory(path), TENSORS)
            self.assertEqual(report["tensor_bytes"], sum(len(t.data) for t in TENSORS.values()))
            if backend == "threads":
                self.assertEqual(report["reactor"]["backend"], "threads")
            self.assertEqual(report["work"]["digests"], report["work"]["pieces"])
            verified = self.good_json("verify", path)
            self.assertEqual(verified["work"]["digests"], report["work"]["digests"])

    def test_replaces_and_keeps_the_files_of_others(self):
        path = self.saved("--files", "2")
        (path / "config.json").write_text("{}")
        report = self.good_json("convert", self.directory / "source.safetensors", path)
        self.assertTrue(report["replaced"])
        self.assertEqual((path / "config.json").read_text(), "{}")
        self.assertEqual(read_directory(path), TENSORS)
        self.assertEqual(len(list(path.glob("*.safetensors"))), 1)

    def test_a_lost_shard_leaves_no_destination(self):
        source = self.directory / "sharded"
        write_sharded(source, TENSORS, 0, 3)
        (source / "shard-00001-model-00001-of-00001.safetensors").unlink()
        self.fails(1, "convert", source, self.directory / "whole")
        self.assertEqual([p.name for p in self.directory.iterdir()], ["sharded"])

    def test_a_changed_byte_is_not_converted(self):
        path = self.saved()
        file, = path.glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        self.assertIn("changed", self.fails(1, "convert", path, self.directory / "copy"))
        self.assertFalse((self.directory / "copy").exists())

    def test_onto_itself(self):
        path = self.saved()
        self.assertTrue(self.good_json("convert", path, path, "--files", "2")["replaced"])
        self.assertEqual(read_directory(path), TENSORS)
        self.assertEqual(len(list(path.glob("*.safetensors"))), 2)

    def test_dtype(self):
        values = {"F32": "f", "F64": "d", "F16": "e"}
        numbers = [0.0, -0.0, 1.0, -2.5, 65504.0, 2.0**-24, 0.1, 1e-7]
        tensor = Tensor("F32", [8], struct.pack("<8f", *numbers))
        write_file(self.directory / "f32.safetensors", {"w": tensor, "norm": tensor, "n": Tensor("I64", [3])})
        for dtype in ["F16", "f64"]:
            path = self.directory / dtype
            self.good("convert", self.directory / "f32.safetensors", path, "--dtype", dtype, "--keep-dtype", "norm")
            found = read_directory(path)
            self.assertEqual(found["w"].data, struct.pack(f"<8{values[dtype.upper()]}", *struct.unpack("<8f", tensor.data)))
            self.assertEqual((found["norm"], found["n"].dtype), (tensor, "I64"))

    def test_what_becomes_infinite_is_told(self):
        write_file(self.directory / "big.safetensors", {"w": Tensor("F32", [1], struct.pack("<f", 1e30))})
        text = self.good("convert", self.directory / "big.safetensors", self.directory / "small", "--dtype", "F16")
        self.assertIn('note: 1 finite values, first of "w"', text)
        self.assertEqual(read_directory(self.directory / "small")["w"].data, struct.pack("<e", float("inf")))

    def test_rename(self):
        path = self.directory / "renamed"
        self.good("convert", self.file(), path, "--rename", "layers.0.=blocks.", "--rename", "s/(em)bed/$1/",
                  "--rename", "s|t|T|g")
        self.assertEqual(sorted(read_directory(path)), ["blocks.bias", "blocks.weighT", "em.weighT", "empTy", "sTeps"])
        self.assertEqual(read_directory(path)["blocks.bias"], TENSORS["layers.0.bias"])

    def test_renames_that_collide_or_find_nothing(self):
        message = self.fails(1, "convert", self.file(), self.directory / "out", "--rename", "s/weight|bias/x/")
        for word in ["layers.0.weight", "layers.0.bias", "layers.0.x"]:
            self.assertIn(word, message)
        self.assertIn("safering inspect", self.fails(1, "convert", self.file(), self.directory / "out", "--rename", "x=y"))
        self.assertFalse((self.directory / "out").exists())

    def test_is_ready_for_the_hub(self):
        path = self.saved()
        index = json.loads((path / "model.safetensors.index.json").read_text())
        self.assertEqual(index["metadata"]["total_size"], sum(len(t.data) for t in TENSORS.values()))
        write_file(self.directory / "bare.safetensors", TENSORS)
        self.good("convert", self.directory / "bare.safetensors", self.directory / "hub")
        report = self.good_json("inspect", self.directory / "hub")
        self.assertEqual([file["metadata"]["format"] for file in report["files"]], ["pt"])

    def test_no_parent(self):
        self.assertIn("absent", self.fails(1, "convert", self.file(), self.directory / "absent" / "x"))


class Bench(CommandTest):
    def check(self, *options):
        report = self.good_json("bench", self.directory, "--size", "2MiB", "--repeat", "3", *options)
        for part in ["save", "load"]:
            self.assertEqual(len(report[part]["runs"]), 3)
            self.assertGreater(report[part]["gib_per_second"], 0)
            self.assertGreater(report[part]["bytes"], 1 << 20)
            work = report[part]["work"]
            self.assertGreaterEqual(work["seconds"], work["transfer_seconds"])
            self.assertGreater(work["requests"], 0)
            self.assertGreater(work["direct_bytes"] + work["cached_bytes"], 0)
            ranks = report[part]["ranks"]
            self.assertEqual([rank["rank"] for rank in ranks], list(range(report["ranks"])))
            self.assertEqual({rank["backend"] for rank in ranks}, {report["reactor"]["backend"]})
            self.assertEqual(sum(rank["work"]["requests"] for rank in ranks), work["requests"])
        self.assertGreater(report["save"]["commit_seconds"], 0)
        self.assertEqual(list(self.directory.iterdir()), [])
        return report

    def test_one_rank(self):
        report = self.check()
        self.assertEqual(report["save"]["bytes"], report["load"]["bytes"])

    def test_ranks_along_dimension_0(self):
        self.check("--ranks", "3")

    def test_ranks_along_dimension_1(self):
        # Norms have no dimension 1: each rank loads them, one saves them.
        report = self.check("--ranks", "2", "--shard-dim", "1", "--backend", "threads")
        self.assertEqual(report["reactor"]["backend"], "threads")
        self.assertGreater(report["load"]["bytes"], report["save"]["bytes"])

    def test_rows_of_a_size(self):
        report = self.check("--ranks", "2", "--shard-dim", "1", "--row", "1KiB")
        self.assertEqual((report["tensors"], report["save"]["bytes"]), (1, 2 << 20))
        report = self.check("--row", "16B", "--tensor-size", "1KiB")
        self.assertEqual((report["tensors"], report["save"]["bytes"]), (2048, 2 << 20))

    def test_blocks_and_depth(self):
        report = self.check("--block", "64KiB", "--depth", "3")
        self.assertEqual((report["reactor"]["buffer_bytes"], report["reactor"]["buffer_count"]), (65536, 3))
        self.assertEqual(report["reactor"]["transfer_bytes"], 65536)
        report = self.check("--request", "64KiB")
        self.assertEqual((report["reactor"]["buffer_bytes"], report["reactor"]["transfer_bytes"]), (4 << 20, 65536))

    def test_text(self):
        text = self.good("bench", self.directory, "--size", "1MB", "--repeat", "1", "--backend", "threads")
        self.assertIn("save, durable", text)
        self.assertIn("load, cold", text)
        for what in [r"save: prepare \d+\.\d+ s, commit \d+\.\d+ s;", "load:"]:
            self.assertRegex(text, rf"the last {what} 1 rank: .* requests of \d+ pieces")
        self.assertRegex(text, r"\n  transfer +\d+\.\d+ s\n(.*\n)+threads +rank 0: ")

    def test_text_of_ranks(self):
        text = self.good("bench", self.directory, "--size", "1MB", "--repeat", "1", "--ranks", "3")
        self.assertRegex(text, r"the last load: 3 ranks: .*\n +min +median +max +rank\n(in all|  transfer) ( *\d+\.\d+ s){3} +[012]\n")
        self.assertRegex(text, r"\n(io_uring|threads) +ranks 0-2: ")

    def test_too_large_for_the_machine(self):
        self.assertIn("--size", self.fails(1, "bench", self.directory, "--size", "1000TiB"))

    def test_no_such_directory(self):
        self.assertIn("absent", self.fails(1, "bench", self.directory / "absent", "--size", "1MB"))


class Output(CommandTest):
    def test_a_full_disk_behind_standard_output_is_a_failure(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            result = subprocess.run([COMMAND, "probe", str(self.directory)], stdout=full,
                                    stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        # Longer than what a stream keeps before it writes.
        many = {f"layers.{i}.weight": Tensor("U8", [3]) for i in range(200)}
        write_file(self.directory / "many.safetensors", many)
        for option in ["--json"], []:
            with open("/dev/full", "w") as full:
                result = subprocess.run([COMMAND, "inspect", str(self.directory / "many.safetensors"), *option],
                                        stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual((result.returncode, result.stderr), (1, "safering: standard output could not be written\n"))
            with open("/dev/full", "w") as full:
                result = subprocess.run([COMMAND, "inspect", "absent", *option], stdout=full, stderr=full)
            self.assertEqual(result.returncode, 1)

    def test_closed_standard_descriptors(self):
        target = self.directory / "step-1"
        for closed, code in {"<&- >&- 2>&-": 1, ">&-": 1, "2>&-": 0, "<&-": 0}.items():
            result = subprocess.run(["sh", "-c", f'exec "$0" convert "$1" "$2" {closed}', COMMAND, self.file(), target],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.assertEqual(result.returncode, code, closed)
            self.good("verify", target)


if __name__ == "__main__":
    tap.main()
