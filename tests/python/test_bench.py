"""The benchmarks that need torch: that they end and write what they should. Never how fast anything is."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAFERING = ROOT / "build" / "tools" / "safering" / "safering"
pytestmark = pytest.mark.skipif(not SAFERING.exists(), reason="the command safering is not built")


def run(tmp_path: pathlib.Path, script: str, *arguments: str) -> str:
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "tests" / "bench" / "fake_fio.py", tmp_path / "bin" / "fio")
    (tmp_path / "disk").mkdir()
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "disk").iterdir()) == []
    return done.stdout


def test_a_quick_race(tmp_path):
    # The last two may not be installed where tests run; both ways are good.
    names = ["safering, DCP", "safetensors", "torch_checkpointing", "safering, torch_checkpointing"]
    table = run(tmp_path, "race", "disk", "--quick", "--size=1MiB", "--rounds=0", *(f"--peer={name}" for name in names))
    report = json.loads((tmp_path / "race.json").read_text())
    run_ = {row["name"] for row in report["charts"][0]["rows"]}
    assert run_ >= set(names[:2])
    assert run_ | {one["name"] for one in report["skipped"]} == set(names)
    assert all(name in table for name in names)
    svg = (tmp_path / "race.svg").read_text()
    assert all(name in svg for name in names) and "roofline: fio" in svg


def test_ranks_meet_below_a_relative_directory(tmp_path):
    table = run(tmp_path, "torch_checkpoint.py", "disk", "--size=1MiB", "--runs=0", "--case=save, 2 ranks, dim 0")
    assert "save, 2 ranks, dim 0" in table
