"""Opens a checkpoint with the safetensors package and compares every tensor with the file it came from.

usage: judge.py SOURCE.safetensors CHECKPOINT_DIRECTORY

Independent of safering: the package is the format's own, the index is read as Hugging Face clients do.
"""

import json
import pathlib
import sys

from safetensors import safe_open


def main(source, checkpoint):
    checkpoint = pathlib.Path(checkpoint)
    weight_map = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: safe_open(checkpoint / name, "numpy") for name in set(weight_map.values())}
    with safe_open(source, "numpy") as original:
        if set(original.keys()) != set(weight_map):
            sys.exit(f"judge: other tensors: {sorted(set(original.keys()) ^ set(weight_map))}")
        for name in original.keys():
            expected, found = original.get_tensor(name), files[weight_map[name]].get_tensor(name)
            if expected.dtype != found.dtype or expected.shape != found.shape:
                sys.exit(f"judge: {name}: {found.dtype}{found.shape} is not {expected.dtype}{expected.shape}")
            if expected.tobytes() != found.tobytes():
                sys.exit(f"judge: {name}: bytes differ")
        print(f"judge   safetensors reads {len(weight_map)} tensors in {len(files)} files, every byte equal")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
