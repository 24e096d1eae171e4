"""What tools/wheel does with the wheel that it has built: a save and a load, by an ordinary user without io_uring."""

import os
import pathlib
import tempfile

import numpy as np
import safering
import safering.numpy

assert os.geteuid() != 0, "run this as an ordinary user"
libraries = pathlib.Path(safering.__file__).parent.parent / "safering.libs"
assert any(libraries.glob("liburing*")), "the wheel brings the libraries that it was linked with"
mapped = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
for name in ["liburing", "libfmt", "libxxhash"]:
    (found,) = {path for path in mapped if pathlib.Path(path).name.startswith(name)}
    assert found.startswith(str(libraries)), f"{found} is this machine's, not the wheel's"

info = safering.info()
assert info["backend"] == "threads", info
assert info["reason"], info

with tempfile.TemporaryDirectory(dir=".") as directory:
    path = os.path.join(directory, "model.safetensors")
    tensors = {"weight": np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024), "steps": np.array(7)}
    safering.numpy.save_file(tensors, path, {"made": "by a wheel"})
    loaded = safering.numpy.load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert np.array_equal(loaded[name], array), name
    with safering.safe_open(path, "np") as file:
        assert file.metadata() == {"made": "by a wheel"}

assert 'safering_saves_total{result="good"} 1' in safering.prometheus_text()
print(f"a save and a load by user {os.geteuid()}: {info['backend']}, {info['reason']}")
