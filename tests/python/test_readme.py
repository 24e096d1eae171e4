"""Runs the Python blocks of README.md, one after another in one process, as a reader would."""

import os
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


def test_python_blocks_run(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks))
    run = subprocess.run([sys.executable, script], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for step in ("step-1000", "step-2000"):
        assert (tmp_path / step / "safering.manifest.json").exists()
