"""A run of tools/trainer.py that is stopped or killed goes on as one that was not, with other ranks too.

Nothing here depends on time: where a run is cut off at depends on the machine, and what must come after is told from
what it printed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor

import ranks
import safering
from safering.torch import AsyncSaver
from states import assert_same, load_full

TRAINER = pathlib.Path(__file__).resolve().parents[2] / "tools" / "trainer.py"
TIMEOUT = 300


def command(run: pathlib.Path, world: int, steps: int, save_every: int = 5) -> list[str]:
    options = {"dir": run, "ranks": world, "steps": steps, "save-every": save_every, "keep": 2}
    return [sys.executable, str(TRAINER), *(f"--{name}={value}" for name, value in options.items())]


def whole(run: pathlib.Path, world: int, steps: int) -> list[str]:
    """The lines of a run that ends by itself."""
    done = subprocess.run(command(run, world, steps), capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def interrupted(run: pathlib.Path, world: int, at: str, interrupt: Callable) -> tuple[int, list[str]]:
    """(exit code, lines) of a run without end; `interrupt(process)` is called when it has printed a line `at`."""
    lines: list[str] = []
    with subprocess.Popen(
        command(run, world, 10**9), stdout=subprocess.PIPE, text=True, pipesize=4096, start_new_session=True
    ) as process:
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith(at):
                    interrupt(process)
                    break
            lines += process.stdout.read().splitlines()
            return process.wait(TIMEOUT), lines
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended, as it should


def losses(lines: list[str]) -> dict[int, str]:
    return {int(words[1]): words[3] for words in map(str.split, lines) if words[0] == "step"}


def checkpoints(run: pathlib.Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def validation(lines: list[str], what: str, step: int) -> str:
    found = [m[1] for line in lines if (m := re.match(rf"{what} step-{step}\b.*, validation loss (\S+)$", line))]
    assert len(found) == 1, lines
    return found[0]


def test_learns_and_keeps_the_last(tmp_path):
    lines = whole(tmp_path / "run", 2, 40)
    said = losses(lines)
    assert sorted(said) == list(range(40))
    assert float(said[39]) < float(said[0]) - 0.3
    kept = [c for c in checkpoints(tmp_path / "run") if c != "latest"]
    # A save may give way to a newer one; the last does not.
    assert len(kept) == min(2, sum(line.startswith("saved") for line in lines)) and "step-40" in kept
    assert (tmp_path / "run" / "latest").read_text() == "step-40\n"
    assert lines[-1] == f"final step 40 loss {validation(lines, 'saved', 40)}"
    # Weights lie under the names that the model gives them, and the optimizer's under its own.
    saved = load_full(tmp_path / "run" / "step-40")
    assert saved["tokens.weight"].shape == (32, 64)
    assert saved["optimizer.state.tokens.weight.exp_avg"].shape == (32, 64)
    assert saved["optimizer.state.tokens.weight.step"] == 40


def test_goes_on_after_sigterm_with_other_ranks(tmp_path):
    code, lines = interrupted(tmp_path / "run", 3, "step 7 ", subprocess.Popen.terminate)
    assert code == 0, lines
    last = int(lines[-1].split()[2])
    assert f"stopped after step {last}, saves given up: 0" in lines
    stopped = load_full(tmp_path / "run" / f"step-{last}")
    more = whole(tmp_path / "run", 2, last + 10)
    assert more[0].startswith(f"resumed step-{last} on 2 ranks")
    assert validation(more, "resumed", last) == validation(lines, "saved", last)
    assert stopped["optimizer.state.head.weight.step"] == last
    # Gradients are added in another order, so that losses differ by rounding; by far more without the optimizer's state.
    expected = losses(whole(tmp_path / "other", 3, last + 10))
    got = losses(more)
    assert sorted(got) == list(range(last, last + 10))
    for step, loss in got.items():
        torch.testing.assert_close(float(loss), float(expected[step]), rtol=1e-3, atol=0)


def resume_and_compare(directory: str, expected: dict[str, torch.Tensor]) -> None:
    import trainer

    with AsyncSaver() as saver:
        run = trainer.Run(argparse.Namespace(dir=directory), saver)
        assert run.resume() == 5
        found = run.tensors(run.state())
    assert_same({name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in found.items()}, expected)


def test_other_ranks_have_the_same_parameters_and_optimizer(tmp_path, monkeypatch):
    whole(tmp_path / "run", 3, 5)
    monkeypatch.syspath_prepend(str(TRAINER.parent))
    expected = load_full(tmp_path / "run" / "step-5")
    ranks.run(2, resume_and_compare, str(tmp_path / "run"), expected, timeout=TIMEOUT)


def test_goes_on_after_sigkill_with_the_same_losses(tmp_path):
    code, lines = interrupted(tmp_path / "run", 2, "saved step-5,", lambda process: os.killpg(process.pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert not [line for line in lines if line.startswith("final")]
    step = safering.latest(tmp_path / "run").step
    assert step >= 5
    more = whole(tmp_path / "run", 2, step + 8)
    assert more[0].startswith(f"resumed step-{step} on 2 ranks")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    expected = whole(tmp_path / "other", 2, step + 8)
    assert losses(more).items() <= losses(expected).items()
    assert more[-1] == expected[-1]
    assert_same(load_full(tmp_path / "run" / f"step-{step + 8}"), load_full(tmp_path / "other" / f"step-{step + 8}"))


def test_a_lost_rank_ends_the_others(tmp_path):
    def kill_a_rank(process: subprocess.Popen) -> None:
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)

    code, lines = interrupted(tmp_path / "run", 3, "step 3 ", kill_a_rank)
    assert code == 1
    assert not [line for line in lines if line.startswith("final")]


def test_wrong_use(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TRAINER), f"--dir={tmp_path}", "--save-every=0"], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 2 and "at least 1" in done.stderr and "Traceback" not in done.stderr
