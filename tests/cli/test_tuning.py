"""`probe --measure`: what is measured, kept, shown and taken, with a cache of its own."""

import json
import os
import shutil
import subprocess
import unittest.mock

from command import COMMAND, CommandTest

import tap


class TuningTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.cache = self.directory / "cache"
        environment = {name: value for name, value in os.environ.items() if name != "SAFERING_TUNING"}
        environment |= {"XDG_CACHE_HOME": str(self.cache), "HOME": str(self.directory)}
        patched = unittest.mock.patch.dict(os.environ, environment, clear=True)
        patched.start()
        self.addCleanup(patched.stop)
        self.target = self.directory / "checkpoints"
        self.target.mkdir()
        if not self.good_json("probe", self.target)["file_system"]["direct"]:
            self.skipTest("no O_DIRECT where the build is")

    def measured(self, *options):
        return self.good_json("probe", self.target, "--measure", "--size", "32MiB", *options)

    def test_nothing_measured(self):
        text = self.good("probe", self.target)
        self.assertRegex(text, r"tuning +defaults, 48.0 MiB of buffers; nothing was measured with (io_uring|threads)\n")
        self.assertIn(f"safering probe {self.target} --measure\n", text)
        tuning = self.good_json("probe", self.target)["tuning"]
        self.assertIn("nothing was measured", tuning["reason"])
        self.assertFalse(self.cache.exists())

    def test_measured_kept_and_shown(self):
        report = self.measured()
        tuning = report["tuning"]
        self.assertRegex(tuning["measured"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertEqual(tuning["file_bytes"], 32 << 20)
        self.assertEqual({row["block_bytes"] for row in tuning["rows"]}, {1 << 20, 4 << 20})
        self.assertEqual(tuning["backend"], report["reactor"]["backend"])
        self.assertLess(tuning["chosen"], len(tuning["rows"]))
        for row in tuning["rows"]:
            self.assertGreater(row["write_gib_per_second"], 0)
            self.assertGreater(row["read_gib_per_second"], 0)
        self.assertEqual(os.listdir(self.target), [])
        self.assertEqual(len(os.listdir(self.cache / "safering")), 1)

        again = self.good_json("probe", self.target)
        self.assertEqual(again["tuning"], tuning)
        chosen = tuning["rows"][tuning["chosen"]]
        reactor = again["reactor"]
        self.assertEqual(reactor["origin"], f"measured {tuning['measured']} on {tuning['file_system']}")
        self.assertEqual(reactor["buffer_bytes"] * reactor["buffer_count"], chosen["buffer_memory"])
        self.assertEqual(reactor["transfer_bytes"], chosen["block_bytes"])
        text = self.good("probe", self.target)
        self.assertIn(f"measured {tuning['measured']} on {tuning['file_system']}", text)
        self.assertEqual(text.count("chosen "), 1)
        self.assertNotIn("--measure", text)

    def test_each_backend_has_its_own(self):
        self.measured("--backend", "threads")
        self.assertIn("rows", self.good_json("probe", self.target, "--backend", "threads")["tuning"])
        default = self.good_json("probe", self.target)
        if default["reactor"]["backend"] == "io_uring":
            self.assertIn("reason", default["tuning"])

    def test_commands_take_it(self):
        tuning = self.measured()["tuning"]
        origin = f"measured {tuning['measured']} on {tuning['file_system']}"
        made = self.good_json("convert", self.file(), self.target / "step-1")
        self.assertEqual(made["reactor"]["origin"], origin)
        with unittest.mock.patch.dict(os.environ, SAFERING_TUNING="off"):
            made = self.good_json("convert", self.file(), self.target / "step-2")
            self.assertEqual(made["reactor"]["origin"], "defaults")
            self.assertIn("SAFERING_TUNING is off", self.good("probe", self.target))

    def test_a_damaged_cache_is_told_and_harms_nothing(self):
        self.measured()
        [path] = (self.cache / "safering").iterdir()
        path.write_text(path.read_text()[:-40])
        self.assertRegex(self.good("probe", self.target), f"tuning +defaults, .*; {path}: ")
        self.assertIn(str(path), self.good_json("probe", self.target)["tuning"]["reason"])
        made = self.good_json("convert", self.file(), self.target / "step-1")
        self.assertEqual(made["reactor"]["origin"], "defaults")
        self.good("verify", self.target / "step-1")

    def test_a_cache_that_cannot_be_written(self):
        self.cache.write_text("a file")
        result = self.run_command("probe", self.target, "--measure", "--size", "32MiB")
        self.assertEqual(result.returncode, 1, result)
        self.assertIn("chosen ", result.stdout)
        self.assertRegex(result.stderr, r"^safering: keep the measurement in .*cache/safering: .*\n$")

    def test_wrong_use(self):
        for arguments in [["--size", "64MiB"], ["--measure", "--size", "31MiB"], ["--measure", "--size", "big"]]:
            self.assertIn("--size", self.fails(2, "probe", self.target, *arguments))

    def test_a_directory_that_is_not_there(self):
        self.assertIn("absent", self.fails(1, "probe", self.directory / "absent", "--measure"))
        self.assertFalse(self.cache.exists())

    def on_a_file_system_of_16_mib(self, *options):
        """A run on a tmpfs that nobody else sees."""
        mounts = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        script = 'mount -t tmpfs -o size=16m none "$1" || exit 77; eval "$2"; exec "$0" probe "$1" --measure --size 32MiB'
        if shutil.which("unshare") is None:
            self.skipTest("no unshare here")
        result = subprocess.run([*mounts, "sh", "-c", script, COMMAND, str(self.target), *options],
                                capture_output=True, text=True, timeout=300)
        if result.returncode == 77 or result.stderr.startswith("unshare"):
            self.skipTest(f"no file system may be mounted: {result.stderr.strip()}")
        self.assertEqual((result.returncode, result.stdout), (1, ""), result)
        return result.stderr

    def test_a_full_disk(self):
        # Before Linux 6.6 tmpfs has no O_DIRECT.
        self.assertRegex(self.on_a_file_system_of_16_mib(":"),
                         r"No space left on device: measuring needs 32 MiB|tmpfs refuses O_DIRECT")

    def test_a_disk_that_may_only_be_read(self):
        self.assertIn("Read-only file system", self.on_a_file_system_of_16_mib('mount -o remount,ro "$1"'))


if __name__ == "__main__":
    tap.main()
