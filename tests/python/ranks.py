"""Runs a function on ranks: processes of one gloo group, forked from a server that has imported torch already.

Every call gets processes of its own, so that a test may kill them, limit them, or leave threads behind. What a
rank returns or raises comes back by rank; whatever is left of its process group after the call is killed.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_context = multiprocessing.get_context("forkserver")
# torch._dynamo: a rank's first DTensor would import it, for longer than most tests take.
_context.set_forkserver_preload(
    ["torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.tensor", "safering.torch", "pytest"]
)


class RankDied(Exception):
    """A rank's process ended without an answer."""

    def __init__(self, rank: int, exit_code: int | None) -> None:
        super().__init__(rank, exit_code)
        self.rank = rank
        #: negative: minus the number of the signal that ended it
        self.exit_code = exit_code

    def __str__(self) -> str:
        code = self.exit_code
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"rank {self.rank} died: {how}"


class RankTimeout(Exception):
    """A rank was still busy when its time was up, and has been killed."""


class RankTraceback(Exception):
    """The cause of an exception that came from a rank: where it was raised there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def outcomes(world: int, function: Callable, *args: Any, timeout: float = 60) -> list[Any]:
    """What `function(*args)` returned on each of `world` ranks, or the exception it ended with.

    The function must be importable by name. Once a rank has failed, the others get 10 seconds more.
    """
    with tempfile.TemporaryDirectory() as directory:
        processes, connections = [], []
        for rank in range(world):
            ours, theirs = _context.Pipe(duplex=False)
            arguments = (theirs, os.path.join(directory, "store"), rank, world, function, args)
            process = _context.Process(target=_work, args=arguments)
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        try:
            return _collect(processes, connections, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.join(timeout=5)
                _kill_group(process.pid)
                process.join()


def run(world: int, function: Callable, *args: Any, timeout: float = 60) -> list[Any]:
    """`outcomes`, of which the first exception is raised."""
    results = outcomes(world, function, *args, timeout=timeout)
    failed = [result for result in results if isinstance(result, BaseException)]
    # What a rank died of tells more than what the others made of it.
    for exception in sorted(failed, key=lambda one: not isinstance(one, RankDied)):
        raise exception
    return results


def _collect(processes: list, connections: list, deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(processes)
    waiting = dict(zip(connections, range(len(processes))))
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting), max(deadline - time.monotonic(), 0))
        if not ready:
            for rank in waiting.values():
                results[rank] = RankTimeout(f"rank {rank} did not answer in time")
                _kill_group(processes[rank].pid)
            return results
        for connection in ready:
            rank = waiting.pop(connection)
            try:
                results[rank], text = pickle.loads(connection.recv_bytes())
                if text:
                    results[rank].__cause__ = RankTraceback(text)
            except EOFError:
                processes[rank].join()
                results[rank] = RankDied(rank, processes[rank].exitcode)
            if isinstance(results[rank], BaseException):
                deadline = min(deadline, time.monotonic() + 10)
    return results


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing is left of it, as it should be


def _work(connection, store: str, rank: int, world: int, function: Callable, args: tuple) -> None:
    os.setsid()  # so that children of a rank can be killed with it
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    answer: Any
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        answer = (function(*args), "")
    except BaseException as exception:
        answer = (exception, traceback.format_exc())
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)
    except Exception as exception:
        lost = RuntimeError(f"rank {rank} gave what cannot be pickled ({exception}): {answer[0]!r}")
        answer = (lost, answer[1] or "see the message\n")
        data = pickle.dumps(answer)
    connection.send_bytes(data)
    connection.close()
    if answer[1]:
        os._exit(1)  # the others, who may wait in a collective, see the connection go
    dist.barrier()
    dist.destroy_process_group()
