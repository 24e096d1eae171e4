"""AsyncSaver, and async_save's copies in staging memory. Nothing here depends on time: a save is held up by a limit
of a byte a second until that is lifted."""

import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import ranks
import safering
from safering import _native, _runtime
from safering.torch import AsyncSaver, HuggingFaceStorageWriter, SaveLimits, reserve_staging_memory
from safering.torch import _async_saver
from safering.torch._dtypes import CODES
from safering.torch._staging import stage
from states import assert_same, load, load_full, numbers, place, random_bits, save

HELD_UP = SaveLimits(bytes_per_second=1)
TIMEOUT = 300


def model(seed: int) -> dict[str, torch.Tensor]:
    state = {f"{i}.{dtype}": random_bits((5 + i, 7), dtype, seed + i) for i, dtype in enumerate(CODES)}
    large = random_bits((300, 7001), torch.bfloat16, seed)
    return state | {"large": large, "across": random_bits((900, 700), seed=seed).t(), "none": torch.empty(0, 3)}


def copies(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def zero(state: dict[str, torch.Tensor]) -> None:
    for tensor in state.values():
        if tensor.is_contiguous():
            tensor.view(torch.uint8).zero_()
        else:
            tensor.zero_()


def test_saves_what_was_there_when_it_was_asked(tmp_path):
    state = model(1)
    expected = copies(state)
    with AsyncSaver() as saver:
        pending = saver.save(state, tmp_path / "deep" / "a")
        zero(state)
        report = pending.result(TIMEOUT)
    assert report["path"] == pending.path == str(tmp_path / "deep" / "a")
    assert_same(load(tmp_path / "deep" / "a", expected), expected)


def test_writes_the_same_bytes_as_a_plain_save(tmp_path):
    state = model(2)
    mapping = {name: i % 3 + 1 for i, name in enumerate(state)}
    save(tmp_path / "plain", state, fqn_to_index_mapping=mapping)
    with AsyncSaver(fqn_to_index_mapping=mapping) as saver:
        saver.save(state, tmp_path / "async").result(TIMEOUT)
    writer = HuggingFaceStorageWriter(str(tmp_path / "dcp"), mapping)
    dcp.async_save(state, storage_writer=writer, no_dist=True).result(TIMEOUT)
    names = sorted(file.name for file in (tmp_path / "plain").glob("*.safetensors"))
    assert len(names) == 3
    for name in names:
        expected = (tmp_path / "plain" / name).read_bytes()
        assert (tmp_path / "async" / name).read_bytes() == expected
        assert (tmp_path / "dcp" / name).read_bytes() == expected


def test_async_save_keeps_to_limits_until_they_are_lifted(tmp_path):
    state = {"w": random_bits((3_000_000,))}
    writer = HuggingFaceStorageWriter(str(tmp_path / "a"), limits=HELD_UP)
    pending = dcp.async_save(state, storage_writer=writer, no_dist=True)
    assert not pending.done()
    while not pending.done():  # the writer's native part may not have been there the first time
        writer.lift_limits()
        time.sleep(0.01)
    pending.result(TIMEOUT)
    assert_same(load(tmp_path / "a", state), state)


def test_async_save_copies_lie_as_the_file_will():
    state = {"b": random_bits((70_001,), torch.uint8), "a": {"x": random_bits((40_000,), torch.int16, 1)}}
    staged = stage(state)
    assert torch.equal(staged["b"], state["b"]) and torch.equal(staged["a"]["x"], state["a"]["x"])
    # Wider dtypes come first in a file; data begins at a block.
    assert staged["a"]["x"].data_ptr() % 4096 == 0
    assert staged["b"].data_ptr() == staged["a"]["x"].data_ptr() + 80_000


def test_the_newest_wins(tmp_path):
    states = [{"w": random_bits((1_500_000,), seed=i)} for i in range(4)]
    with AsyncSaver(limits=HELD_UP) as saver:
        pending = [saver.save(state, tmp_path / str(i)) for i, state in enumerate(states)]
        saver.lift_limits()
        assert saver.wait(TIMEOUT)
        # The first may not have begun when the second was asked for.
        for i in (1, 2):
            with pytest.raises(safering.Error, match=f"{tmp_path / str(i)}.*a newer save was asked for"):
                pending[i].result(TIMEOUT)
        pending[3].result(TIMEOUT)
    assert_same(load(tmp_path / "3", states[3]), states[3])
    assert not (tmp_path / "1").exists() and not (tmp_path / "2").exists()


def test_cancel_leaves_the_older_checkpoint(tmp_path):
    older, newer = {"w": random_bits((1_500_000,))}, {"w": random_bits((1_500_000,), seed=1)}
    save(tmp_path / "a", older)
    with AsyncSaver(limits=HELD_UP) as saver:
        pending = saver.save(newer, tmp_path / "a")
        assert not saver.wait(0) and not pending.done()
        with pytest.raises(TimeoutError, match="has not ended"):
            pending.result(0.01)
        saver.cancel()
        with pytest.raises(safering.StorageError, match="cancel"):
            pending.result(TIMEOUT)
    assert_same(load(tmp_path / "a", older), older)


def test_emergency_flush(tmp_path):
    state = {"w": random_bits((1_500_000,))}
    with AsyncSaver(limits=HELD_UP) as saver:
        saver.save(state, tmp_path / "a")
        assert saver.emergency_flush(TIMEOUT) == ([str(tmp_path / "a")], [])
        assert saver.emergency_flush(0) == ([], [])
    assert_same(load(tmp_path / "a", state), state)


def test_emergency_flush_in_a_signal_handler(tmp_path):
    state = {"w": random_bits((1_500_000,))}
    flushed = []
    with AsyncSaver(limits=HELD_UP) as saver:
        previous = signal.signal(signal.SIGTERM, lambda *_: flushed.append(saver.emergency_flush(TIMEOUT)))
        try:
            pending = saver.save(state, tmp_path / "a")
            signal.raise_signal(signal.SIGTERM)
            pending.result(TIMEOUT)
        finally:
            signal.signal(signal.SIGTERM, previous)
    assert flushed == [([str(tmp_path / "a")], [])]


def test_failures_are_the_results(tmp_path):
    state = {"w": numbers(10)}
    with AsyncSaver() as saver:
        with pytest.raises(TypeError, match="'step'"):
            saver.save(state | {"step": 7}, tmp_path / "a")
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="file"):
            saver.save(state, tmp_path / "file" / "a")
        saver.save(state, tmp_path / "a").result(TIMEOUT)
    with pytest.raises(ValueError, match="closed"):
        saver.save(state, tmp_path / "b")
    with pytest.raises(ValueError, match="share"):
        SaveLimits(processor_share=2)


def test_other_threads_may_use_it_while_it_is_closed(tmp_path):
    state = {"w": random_bits((1_500_000,))}
    saver = AsyncSaver(limits=HELD_UP)
    saver.save(state, tmp_path / "a")
    ended = []
    threads = [
        threading.Thread(target=lambda: ended.append(saver.wait(TIMEOUT))),
        threading.Thread(target=lambda: ended.append(saver.close())),
    ]
    for thread in threads:
        thread.start()
    threads[1].join(0.2)  # so that it has begun to wait; enough where it has not
    assert threads[1].is_alive()
    saver.lift_limits()
    for thread in threads:
        thread.join()
    assert sorted(ended, key=str) == [None, True]
    saver.close()
    assert saver.wait(0)
    assert_same(load(tmp_path / "a", state), state)


@pytest.mark.parametrize("when", ["plan", "copy"])
def test_an_interrupt_is_raised(tmp_path, monkeypatch, when):
    state = {"w": random_bits((3000, 100))}

    def interrupted(*_):
        raise KeyboardInterrupt

    with AsyncSaver() as saver:
        with monkeypatch.context() as patch:
            patch.setattr(_async_saver, {"plan": "item_columns", "copy": "copy_to"}[when], interrupted)
            with pytest.raises(KeyboardInterrupt):
                saver.save(state, tmp_path / "a")
        assert saver.wait(TIMEOUT)
        assert list(tmp_path.iterdir()) == []
        saver.save(state, tmp_path / "a").result(TIMEOUT)
    assert_same(load(tmp_path / "a", state), state)


def interrupt_one_rank(path: str, when: str) -> str:
    mesh = init_device_mesh("cpu", (2,))
    full = numbers(64, 32)
    state = {"w": place(full, mesh, [Shard(0)])}
    name = {"plan": "item_columns", "copy": "copy_to"}[when]
    said = ""

    def interrupted(*_):
        raise KeyboardInterrupt

    with AsyncSaver() as saver:
        original = getattr(_async_saver, name)
        if dist.get_rank() == 1:
            setattr(_async_saver, name, interrupted)
        try:
            saver.save(state, f"{path}/a").result(TIMEOUT)
        except (KeyboardInterrupt, safering.Error) as error:
            said = f"{type(error).__name__}: {error}"
        setattr(_async_saver, name, original)
        saver.save(state, f"{path}/b").result(TIMEOUT)
    dist.barrier()
    assert_same(load_full(f"{path}/b"), {"w": full})
    return said


@pytest.mark.parametrize("when", ["plan", "copy"])
def test_an_interrupt_of_one_rank_ends_the_save_on_all(tmp_path, when):
    first, second = ranks.run(2, interrupt_one_rank, str(tmp_path), when, timeout=TIMEOUT)
    assert "rank 1" in first and "KeyboardInterrupt" in first
    assert second.startswith("KeyboardInterrupt")
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


class Mute:
    """Another rank's end that says nothing which makes sense."""

    rank, ranks = 0, 2

    def __init__(self, raised: type[BaseException] | None = None) -> None:
        self.raised = raised

    def gather(self, own: bytes) -> list:
        if self.raised:
            raise self.raised("of the transport")
        return ["text"]

    def scatter(self, parts: list[bytes]) -> bytes:
        return "text"


@pytest.mark.parametrize(
    "raised, expected", [(None, safering.Error), (OSError, safering.Error), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_a_transport_that_fails(tmp_path, raised, expected):
    native = _native.AsyncSaver(
        _runtime.reactor(), {}, False, True, "off", 0, 0.0, Mute(raised), Mute()
    )
    plan = _native.SavePlan(0, ["w"], [CODES[torch.uint8]], [None], [(2,)], [None])
    with pytest.raises(expected, match="bytes" if raised is None else "of the transport"):
        native.save(str(tmp_path / "a"), plan, lambda *_: None)
    native.close()


def test_staging_memory_is_reserved_reused_and_released(tmp_path):
    state = {"w": random_bits((3_000_000,))}
    _native.release_staging_memory()
    before = _native.staging_memory()
    reserve_staging_memory(12_000_000)
    reserved = _native.staging_memory()
    assert reserved - before == 12 << 20  # whole huge pages
    with AsyncSaver() as saver:
        for i in range(3):
            saver.save(state, tmp_path / str(i)).result(TIMEOUT)
    assert _native.staging_memory() == reserved
    _native.release_staging_memory()
    assert _native.staging_memory() == before


def save_by_ranks(path: str) -> list[str]:
    mesh = init_device_mesh("cpu", (2,))
    full = {"even": random_bits((64, 4096)), "uneven": random_bits((701, 300), seed=1), "same": numbers(1000)}
    full["inner"] = random_bits((64, 2048), torch.bfloat16, 2)
    state = {
        "even": place(full["even"], mesh, [Shard(0)]),
        "uneven": place(full["uneven"], mesh, [Shard(0)]),
        "inner": place(full["inner"], mesh, [Shard(1)]),
        "same": place(full["same"], mesh, [Replicate()]),
    }
    said = []
    with AsyncSaver() as saver:
        reports = [saver.save(state, f"{path}/{i}").result(TIMEOUT) for i in range(2)]
        # One rank cannot: all hear of it, and the saver goes on.
        bad = state | ({"step": 7} if dist.get_rank() == 1 else {})
        try:
            saver.save(bad, f"{path}/bad")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        reports.append(saver.save(state, f"{path}/2").result(TIMEOUT))
    dist.barrier()
    for i in range(3):
        assert_same(load_full(f"{path}/{i}"), full)
    return said + [report["attempt"] for report in reports]


def test_ranks_save_together(tmp_path):
    first, second = ranks.run(2, save_by_ranks, str(tmp_path), timeout=TIMEOUT)
    assert "rank 1" in first[0] and "'step'" in first[0]
    assert second[0].startswith("TypeError") and "'step'" in second[0]
    assert first[1:] == second[1:] and len(first) == 4
    assert not (tmp_path / "bad").exists()


def save_by_some_ranks(path: str) -> None:
    group = dist.new_group([1, 2])
    if dist.get_rank() != 0:
        with AsyncSaver(process_group=group) as saver:
            saver.save({"w": numbers(1000)}, path).result(TIMEOUT)
    # All ranks make groups afterwards as before.
    dist.barrier(dist.new_group())
    assert_same(load_full(path), {"w": numbers(1000)})


def test_some_ranks_save_and_the_others_take_no_part(tmp_path):
    ranks.run(3, save_by_some_ranks, str(tmp_path / "some"), timeout=60)


def agree_by_ranks(path: str) -> list[str]:
    outcomes = []
    with AsyncSaver(limits=HELD_UP) as saver:
        mesh = init_device_mesh("cpu", (2,))
        state = {"w": place(random_bits((3000, 1000)), mesh, [Shard(0)])}
        pending = [saver.save(state, f"{path}/{i}") for i in range(4)]
        saver.lift_limits()
        for one in pending:
            try:
                outcomes.append(one.result(TIMEOUT)["attempt"])
            except safering.Error as error:
                assert "newer save" in str(error)
                outcomes.append("superseded")
    return outcomes


def test_ranks_agree_on_the_newest(tmp_path):
    first, second = ranks.run(2, agree_by_ranks, str(tmp_path), timeout=TIMEOUT)
    assert first == second
    assert not (tmp_path / "2").exists() and (tmp_path / "3").exists()
