"""A training run with safering in it, to be copied: a small transformer under FSDP2, saves in the background, resumption
with any number of ranks, the last checkpoints kept, SIGTERM obeyed.

    python tools/trainer.py --dir RUN [--ranks 2] [--steps 1000] [--save-every 100] [--keep 3]
    torchrun --nproc-per-node 2 tools/trainer.py --dir RUN [...]

It runs on gloo and processors. What a batch holds depends on its step alone, so a run that is cut off and goes on with
as many ranks has the losses of one that was not, to the bit; with others, whose gradients are added in another order,
it starts from the same parameters and optimizer, to the bit, and the validation loss that is printed shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shlex
import signal
import socket
import sys

try:
    import torch

    import safering.torch
except ModuleNotFoundError as absent:
    print(
        f"{sys.argv[0]}: no module named {absent.name!r} here; type: "
        f"tools/setup python torch numpy safetensors && .venv/bin/python {shlex.join(sys.argv)}",
        file=sys.stderr,
    )
    sys.exit(2)
import torch._dynamo  # The first DTensor imports it: once here, and not in every rank.
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from safering.torch import AsyncSaver, HuggingFaceStorageReader, PendingSave, SaveLimits

VOCABULARY, LENGTH, BATCH = 32, 24, 12
# What a cluster leaves between SIGTERM and SIGKILL, less a margin for the processes to end.
FLUSH_SECONDS = 20
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """Says which token comes next. Tokens: int64 [batch, length]; out: float32 [batch, length, VOCABULARY]."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def batch_of(step: int) -> torch.Tensor:
    """BATCH sequences that count up in strides, each with a beginning and a stride of its own."""
    generator = torch.Generator().manual_seed(step)
    begin, stride = torch.randint(1, VOCABULARY, (2, BATCH, 1), generator=generator)
    return (begin + stride * torch.arange(LENGTH + 1)) % VOCABULARY


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The sum over the batch's sequences."""
    logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum") / LENGTH


class Run:
    """One rank's part."""

    def __init__(self, arguments: argparse.Namespace, saver: AsyncSaver) -> None:
        self.arguments = arguments
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.saver = saver
        self.saves: list[tuple[str, PendingSave]] = []
        self.asked_to_stop = False
        # The loop looks at it between two steps: all ranks have to stop after the same one.
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked_to_stop", True))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        torch.manual_seed(0)
        self.model = Model()
        mesh = init_device_mesh("cpu", (self.ranks,))
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh)
        # Or a forward pass alone, as in validate, would leave whole parameters behind.
        fully_shard(self.model, mesh=mesh, reshard_after_forward=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)

    def train(self) -> None:
        step = self.resume()
        stop = False
        while step < self.arguments.steps and not stop:
            stop = self.learn(step)
            step += 1
            if step % self.arguments.save_every == 0 or step == self.arguments.steps or stop:
                self.save(step)
            self.settle(wait=False)
        if stop:
            flushed = self.saver.emergency_flush(FLUSH_SECONDS)
            self.say(f"stopped after step {step}, saves given up: {len(flushed.abandoned)}")
        self.settle(wait=True)
        self.say(f"final step {step} loss {self.validate():.17g}")

    def learn(self, step: int) -> bool:
        """A step down the gradient; whether any rank was told to stop."""
        own = batch_of(step)[self.rank :: self.ranks]
        # FSDP gives the mean over ranks, whose parts of the batch may differ in size.
        loss = loss_of(self.model, own) * (self.ranks / BATCH)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        sums = torch.stack([loss.detach().double() / self.ranks, torch.tensor(float(self.asked_to_stop)).double()])
        dist.all_reduce(sums)
        self.say(f"step {step} loss {sums[0]:.17g}")
        return bool(sums[1])

    def validate(self) -> float:
        """The mean loss of sequences that no step sees: the same on all ranks, since each looks at all of them."""
        with torch.no_grad():
            return loss_of(self.model, batch_of(1 << 40)).item() / BATCH

    def state(self) -> dict[str, object]:
        """Everything that training goes on from, under the names of a Hugging Face model and `optimizer.`."""
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=FLAT)
        return get_model_state_dict(self.model) | {f"optimizer.{name}": value for name, value in optimizer.items()}

    def tensors(self, state: dict[str, object]) -> dict[str, torch.Tensor]:
        """A checkpoint holds tensors; the rest, such as the learning rate, is what this program says."""
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}

    def resume(self) -> int:
        """The step to go on with. One rank looks, so that all see the same."""
        found: list[tuple[int, str] | None] = [None]
        if self.rank == 0:
            for checkpoint in self.cut_off():
                safering.recover(checkpoint, all_attempts=True)
            newest = safering.latest(self.arguments.dir, prefix="step")
            found = [newest and (newest.step, newest.path)]
        dist.broadcast_object_list(found)
        if found[0] is None:
            return 0
        step, path = found[0]
        state = self.state()
        dcp.load(self.tensors(state), storage_reader=HuggingFaceStorageReader(path))
        optimizer = {name.removeprefix("optimizer."): v for name, v in state.items() if name.startswith("optimizer.")}
        set_optimizer_state_dict(self.model, self.optimizer, optimizer, options=FLAT)
        set_model_state_dict(self.model, {name: v for name, v in state.items() if not name.startswith("optimizer.")})
        self.say(f"resumed step-{step} on {self.ranks} ranks, validation loss {self.validate():.17g}")
        return step

    def cut_off(self) -> set[pathlib.Path]:
        """Checkpoints that a killed run was saving; nobody else writes to its directory."""
        directory = pathlib.Path(self.arguments.dir)
        return {directory / attempt.name[1:].rsplit(".", 2)[0] for attempt in directory.glob(".step-*.*.tmp")}

    def save(self, step: int) -> None:
        """Copies what is to be saved and returns; parameters may change at once."""
        loss = self.validate()
        path = os.path.join(self.arguments.dir, f"step-{step}")
        pending = self.saver.save(self.tensors(self.state()), path)
        self.saves.append((f"step-{step}, validation loss {loss:.17g}", pending))

    def settle(self, wait: bool) -> None:
        """Looks at saves that have ended; one that failed leaves the run with the checkpoint before it."""
        while self.saves and (wait or self.saves[0][1].done()):
            what, pending = self.saves.pop(0)
            try:
                pending.result()
                if self.rank == 0:
                    safering.set_latest(pending.path)
                    safering.prune(self.arguments.dir, keep_last=self.arguments.keep, prefix="step")
                self.say(f"saved {what}")
            except RuntimeError as error:
                print(f"trainer: rank {self.rank}: {error}", file=sys.stderr)

    def say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


def run_rank(arguments: argparse.Namespace) -> None:
    """In a process that has the environment which torchrun gives."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # A tenth of a core for writing; the rest is for training. Lifted when there is no time left.
    with AsyncSaver(limits=SaveLimits(processor_share=0.1)) as saver:
        Run(arguments, saver).train()
    dist.destroy_process_group()


def start_rank(arguments: argparse.Namespace, rank: int, port: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no rank outlives the launcher
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(arguments.ranks)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    run_rank(arguments)


def launch(arguments: argparse.Namespace) -> int:
    """What torchrun does, on one host: ranks of this program, which end together."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=start_rank, args=(arguments, rank, port)) for rank in range(arguments.ranks)]

    def pass_on(number: int, _: object) -> None:
        for rank in ranks:
            if rank.is_alive():
                rank.terminate()

    # Held back in the ranks too, until they have a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    for rank in ranks:
        rank.start()
    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    running = set(ranks)
    failed = False
    while running:
        multiprocessing.connection.wait([rank.sentinel for rank in running])
        ended = {rank for rank in running if rank.exitcode is not None}
        running -= ended
        if not failed and any(rank.exitcode != 0 for rank in ended):
            failed = True
            for rank in running:  # they would wait for it
                rank.kill()
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="the run's directory")
    parser.add_argument("--ranks", type=int, default=2, choices=range(1, BATCH + 1), help="processes", metavar="N")
    parser.add_argument("--steps", type=int, default=1000, help="from the beginning of the run")
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints")
    arguments = parser.parse_args()
    if arguments.save_every < 1 or arguments.keep < 1:
        parser.error("--save-every and --keep must be at least 1")
    os.makedirs(arguments.dir, exist_ok=True)
    if "RANK" in os.environ:
        run_rank(arguments)
        return 0
    return launch(arguments)


if __name__ == "__main__":
    sys.exit(main())
