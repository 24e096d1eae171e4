"""A run of tools/trainer.cpp that is stopped or killed, and goes on with other ranks, ends as one that was not.

usage: test_trainer.py TRAINER

Nothing here depends on time: runs that are to be interrupted would not end by themselves.
"""

import os
import signal
import subprocess

import command
import tap
from safetensors_files import read_directory

STEPS = 1000
ENDLESS = 10**12


class Trainer(command.CommandTest):
    def arguments(self, run, ranks, steps=STEPS):
        return [command.COMMAND, "--dir", str(self.directory / run), "--ranks", str(ranks), "--steps", str(steps),
                "--save-every", "100", "--keep", "2"]

    def whole(self, run, ranks, steps=STEPS):
        """The lines of a run that ends by itself."""
        result = subprocess.run(self.arguments(run, ranks, steps), capture_output=True, text=True, timeout=300,
                                stdin=subprocess.DEVNULL)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result)
        return result.stdout.splitlines()

    def interrupted(self, run, ranks, at, interrupt):
        """(exit code, lines) of a run for which `interrupt(process)` is called when it has printed a line `at`."""
        lines = []
        with subprocess.Popen(self.arguments(run, ranks, ENDLESS), stdout=subprocess.PIPE, text=True, pipesize=4096,
                              stdin=subprocess.DEVNULL, start_new_session=True) as process:
            self.addCleanup(self.kill, process)
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if lines[-1].startswith(at):
                    interrupt(process)
                    break
            lines += process.stdout.read().splitlines()
            return process.wait(300), lines

    @staticmethod
    def kill(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, as it should

    def checkpoints(self, run):
        return sorted(path.name for path in (self.directory / run).glob("step-*"))

    def assert_ends_as_one_run(self, run, lines, steps):
        """That `run`, which ended with `lines`, is what a run of one rank comes to that nobody interrupts."""
        whole = self.whole("whole", 1, steps)
        self.assertEqual(lines[-1], whole[-1])
        self.assertRegex(lines[-1], rf"^final step {steps} loss \d")
        name = f"step-{steps}"
        self.assertEqual(read_directory(self.directory / run / name), read_directory(self.directory / "whole" / name))

    def test_learns_and_keeps_the_last(self):
        lines = self.whole("whole", 2)
        losses = [float(line.split()[-1]) for line in lines if line.startswith("step ")]
        self.assertEqual(len(losses), STEPS)
        self.assertLess(losses[-1], losses[0] / 100)
        self.assertEqual(len(self.checkpoints("whole")), min(2, sum(line.startswith("saved") for line in lines)))
        self.assertIn(f"step-{STEPS}", self.checkpoints("whole"))
        self.assertEqual((self.directory / "whole" / "latest").read_text(), f"step-{STEPS}\n")

    def test_goes_on_after_sigterm_with_other_ranks(self):
        code, lines = self.interrupted("cut", 3, "step 250 ", lambda process: process.terminate())
        self.assertEqual(code, 0, lines[-5:])
        last = int(lines[-1].split()[2])
        self.assertGreaterEqual(last, 250)
        self.assertIn(f"stopped after step {last}, saves given up: 0", lines)
        self.assertIn(f"saved step-{last}", lines)
        lines = self.whole("cut", 2, last + 300)
        self.assertEqual(lines[0], f"resumed step-{last} on 2 ranks")
        self.assert_ends_as_one_run("cut", lines, last + 300)
        self.assertEqual(len(self.checkpoints("cut")), 2)

    def test_goes_on_after_sigkill(self):
        self.whole("cut", 2, steps=300)
        code, lines = self.interrupted("cut", 3, "step 500 ", lambda process: os.killpg(process.pid, signal.SIGKILL))
        self.assertEqual(code, -signal.SIGKILL)
        self.assertEqual(lines[0], "resumed step-300 on 3 ranks")
        self.assertFalse([line for line in lines if line.startswith("final")])
        last = int((self.directory / "cut" / "latest").read_text().removeprefix("step-"))
        lines = self.whole("cut", 4, last + 300)
        self.assertGreaterEqual(int(lines[0].removeprefix("resumed step-").split()[0]), max(300, last))
        self.assert_ends_as_one_run("cut", lines, last + 300)
        self.assertEqual([path.name for path in (self.directory / "cut").iterdir() if path.name.startswith(".")], [])

    def test_a_lost_rank_ends_the_others(self):
        def kill_a_child(process):
            children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
            os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)

        code, lines = self.interrupted("cut", 3, "step 150 ", kill_a_child)
        self.assertEqual(code, 1)
        self.assertFalse([line for line in lines if line.startswith("final")])


if __name__ == "__main__":
    tap.main()
