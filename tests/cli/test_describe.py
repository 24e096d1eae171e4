"""Shell completion and the manual page, as shells and man(1) take them.

usage: test_describe.py SAFERING_COMMAND
"""

import re
import shutil
import subprocess
import unittest

from command import CommandTest

import tap

SUBCOMMANDS = ["probe", "inspect", "verify", "diff", "list", "prune", "recover", "convert", "bench", "completion",
               "man"]


class Completion(CommandTest):
    def bash(self, *words):
        """What bash would offer for the last of the words."""
        script = self.directory / "script"
        script.write_text(self.good("completion", "bash"))
        line = " ".join(f"'{word}'" for word in words)
        result = subprocess.run(
            ["bash", "-c", f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _safering; "
             'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, cwd=self.directory, timeout=60)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.split()

    def test_bash_offers_commands_options_values_and_files(self):
        for name in SUBCOMMANDS:
            self.assertIn(name, self.bash("safering", ""))
        self.assertEqual(self.bash("safering", "ver"), ["verify"])
        self.assertEqual(self.bash("safering", "prune", "--keep-l"), ["--keep-last"])
        self.assertEqual(self.bash("safering", "verify", "--backend", "i"), ["io_uring"])
        self.assertEqual(self.bash("safering", "completion", "f"), ["fish"])
        self.assertEqual(self.bash("safering", "inspect", "scr"), ["script"])

    def test_others_parse(self):
        for shell, check in [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])]:
            script = self.directory / shell
            script.write_text(self.good("completion", shell))
            for name in SUBCOMMANDS:
                self.assertIn(name, script.read_text())
            if shutil.which(shell):
                result = subprocess.run([*check, script], capture_output=True, text=True, timeout=60)
                self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_unknown_shell(self):
        self.assertIn("bash, zsh, fish", self.fails(2, "completion", "tcsh"))


class ManPage(CommandTest):
    def test_names_every_command_and_option(self):
        page = self.good("man").replace("\\-", "-")
        for name in SUBCOMMANDS:
            self.assertIn(f'.SS "safering {name}"', page)
            for option in re.findall(r"(?<= )--[a-z-]+", self.good(name, "--help")):
                self.assertIn(option, page)
        self.assertIn("Exit codes", page)

    @unittest.skipUnless(shutil.which("groff"), "no groff here")
    def test_groff_takes_it_without_a_warning(self):
        result = subprocess.run(["groff", "-man", "-Tascii", "-ww"], input=self.good("man"), capture_output=True,
                                text=True, timeout=60)
        self.assertEqual((result.returncode, result.stderr), (0, ""))


if __name__ == "__main__":
    tap.main()
