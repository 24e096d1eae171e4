"""`safering list`, `prune` and `recover`: the checkpoints of a run.

usage: test_steps.py SAFERING_COMMAND
"""

import json

from command import CommandTest

import tap

OLD_ATTEMPT = ".step-3." + "0" * 32 + ".tmp"
NEW_ATTEMPT = ".step-3." + "f" * 32 + ".tmp"


class RunTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.run_directory = self.directory / "run"
        self.run_directory.mkdir()
        self.source = self.file()

    def save(self, *names):
        for name in names:
            self.good("convert", self.source, self.run_directory / name)

    def names(self):
        return sorted(path.name for path in self.run_directory.iterdir())


class List(RunTest):
    def test_empty(self):
        report = self.good_json("list", self.run_directory)
        self.assertEqual((report["checkpoints"], report["latest"], report["pointer"]), ([], None, None))
        self.assertIn("no checkpoints", self.good("list", self.run_directory))
        self.assertNotIn("inspect", self.good("list", self.run_directory))

    def test_of_a_checkpoint(self):
        self.save("step-1")
        self.assertIn("which is one itself: safering inspect", self.good("list", self.run_directory / "step-1"))

    def test_states_and_latest(self):
        self.save("step-2", "step-10", "step-11")
        (self.run_directory / "step-1").mkdir()
        file, = (self.run_directory / "step-11").glob("model-*")
        file.write_bytes(file.read_bytes()[:-1])
        report = self.good_json("list", self.run_directory)
        self.assertEqual([(c["name"], c["state"]) for c in report["checkpoints"]],
                         [("step-1", "foreign"), ("step-2", "whole"), ("step-10", "whole"), ("step-11", "damaged")])
        self.assertEqual(report["latest"], "step-10")
        text = self.good("list", self.run_directory)
        self.assertRegex(text, r"step-10 +whole .* <- latest\n")
        self.assertIn(file.name, text)

    def test_attempts_are_shown(self):
        self.save("step-3")
        (self.run_directory / OLD_ATTEMPT).mkdir()
        (self.run_directory / NEW_ATTEMPT).mkdir()
        (self.run_directory / ".step-3.tmp").mkdir()
        leftovers = self.good_json("list", self.run_directory)["leftovers"]
        self.assertEqual([(l["name"], l["kind"], l["stale"]) for l in leftovers],
                         [(OLD_ATTEMPT, "attempt", True), (NEW_ATTEMPT, "attempt", False)])

    def test_control_characters_do_not_reach_the_terminal(self):
        self.save("evil\x1b[2J-5")
        self.assertNotIn("\x1b", self.good("list", self.run_directory))

    def test_absent(self):
        self.assertIn("absent", self.fails(1, "list", self.directory / "absent"))


class Prune(RunTest):
    def test_dry_run_changes_nothing_and_says_the_same(self):
        self.save("step-100", "step-150", "step-200", "step-300")
        options = ["prune", self.run_directory, "--keep-last", "1", "--keep-every", "100"]
        planned = self.good_json(*options, "--dry-run")
        self.assertEqual(len(self.names()), 4)
        done = self.good_json(*options)
        self.assertEqual([c["name"] for c in planned["removed"]], ["step-150"])
        self.assertEqual(planned["removed"], done["removed"])
        self.assertEqual(self.names(), ["step-100", "step-200", "step-300"])
        for kept in done["kept"]:
            self.assertTrue(kept["kept_because"])

    def test_files_of_others(self):
        self.save("step-1", "step-2")
        (self.run_directory / "step-1" / "config.json").write_text("{}")
        options = ["prune", self.run_directory, "--keep-last", "1"]
        self.assertIn("config.json", self.good(*options))
        self.assertEqual(self.names(), ["step-1", "step-2"])
        self.good(*options, "--with-others")
        self.assertEqual(self.names(), ["step-2"])

    def test_links_are_not_followed(self):
        self.save("step-2", "step-3")
        (self.run_directory / "step-1").symlink_to("step-2")
        self.good("prune", self.run_directory, "--keep-last", "2")
        self.assertEqual(self.names(), ["step-1", "step-2", "step-3"])

    def test_one_prefix(self):
        self.save("a-1", "a-2", "b-1", "b-2")
        self.good("prune", self.run_directory, "--keep-last", "1", "--prefix", "b")
        self.assertEqual(self.names(), ["a-1", "a-2", "b-2"])


class Recover(RunTest):
    def test_only_overtaken_attempts_go_unasked(self):
        self.save("step-3")
        for name in [OLD_ATTEMPT, NEW_ATTEMPT]:
            (self.run_directory / name).mkdir()
        report = self.good_json("recover", self.run_directory / "step-3")
        self.assertEqual([l["name"] for l in report["removed"]], [OLD_ATTEMPT])
        self.assertEqual([l["name"] for l in report["left"]], [NEW_ATTEMPT])
        self.assertIn("--all-attempts", self.good("recover", self.run_directory / "step-3"))
        self.good("recover", self.run_directory / "step-3", "--all-attempts")
        self.assertEqual(self.names(), ["step-3"])
        self.assertEqual(self.good("recover", self.run_directory / "step-3"), "nothing to recover\n")

    def test_what_is_not_ours_in_an_attempt_stays_and_is_told(self):
        self.save("step-3")
        (self.run_directory / OLD_ATTEMPT).mkdir()
        (self.run_directory / OLD_ATTEMPT / "diary.txt").write_text("dear")
        result = self.run_command("recover", self.run_directory / "step-3", "--json")
        self.assertEqual(result.returncode, 1)
        [failure] = json.loads(result.stdout)["failures"]
        # Under another attempt's name: nobody commits the rest of this one any more.
        [diary] = self.run_directory.glob(".*/diary.txt")
        self.assertIn(str(diary.parent), str(failure))


if __name__ == "__main__":
    tap.main()
