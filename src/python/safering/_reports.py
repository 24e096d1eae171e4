"""How a save or a load went."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


class _Fields(Mapping):
    """A dataclass whose fields are read as those of a dictionary too."""

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists, texts and numbers, as `json.dumps` takes them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class WorkReport(_Fields):
    """What one rank's write_data, or read_data, did. Copies are made while the disk works, so that the seconds of the
    phases add up to more than `seconds`.

    Attributes:
        seconds: from the call to the end.
        plan_seconds: checking, and cutting into requests.
        transfer_seconds: from the first transfer to the end of the last.
        stall_seconds, stalls: of these, with no transfer in the kernel's hands although there was more to do.
        copy_seconds: copies to or from the buffers, with the digests of a save.
        verify_seconds: the digests of a load.
        pause_seconds: waiting to stay within SaveLimits.
        flush_seconds: after the last transfer, fsync and close; of a load, the copies that were left.
        requests, pieces: to the disk, and the pieces of tensors that they carried.
        most_in_flight: requests at once.
        retries: attempts at requests beyond the first: what came back short, interrupted or busy.
        direct_bytes, cached_bytes: past the page cache, and through it.
        copied_cells, uncopied_cells: through a buffer, and from where they lay.
        digests: that were taken.
    """

    seconds: float = 0.0
    plan_seconds: float = 0.0
    transfer_seconds: float = 0.0
    stall_seconds: float = 0.0
    stalls: int = 0
    copy_seconds: float = 0.0
    verify_seconds: float = 0.0
    pause_seconds: float = 0.0
    flush_seconds: float = 0.0
    requests: int = 0
    pieces: int = 0
    most_in_flight: int = 0
    retries: int = 0
    direct_bytes: int = 0
    cached_bytes: int = 0
    copied_cells: int = 0
    uncopied_cells: int = 0
    digests: int = 0

    def __add__(self, other: WorkReport) -> WorkReport:
        """One after the other."""
        sums = {name: self[name] + other[name] for name in self}
        return WorkReport(**sums | {"most_in_flight": max(self.most_in_flight, other.most_in_flight)})


@dataclasses.dataclass(frozen=True)
class RankReport(_Fields):
    """What one rank wrote of a save, and what carried its requests and why: a rank that fell back to threads says so."""

    rank: int
    work: WorkReport
    backend: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RankSpread(_Fields):
    """One number of all ranks. `max_rank` has the largest: of seconds, it is the slowest rank."""

    min: float
    median: float
    max: float
    max_rank: int


@dataclasses.dataclass(frozen=True)
class BackendRanks(_Fields):
    """Ranks that went one way for one reason."""

    backend: str
    reason: str
    ranks: list[int]


@dataclasses.dataclass(frozen=True)
class RankSummary(_Fields):
    """All ranks of a save at a glance.

    Attributes:
        total: sums, and the largest of the depths.
        spreads: of every field of WorkReport, by its name.
        backends: that of the most ranks first.
    """

    total: WorkReport
    spreads: dict[str, RankSpread]
    backends: list[BackendRanks]

    @classmethod
    def of(cls, native: dict[str, Any]) -> RankSummary:
        return cls(
            WorkReport(**native["total"]),
            {field: RankSpread(**spread) for field, spread in native["spreads"].items()},
            [BackendRanks(**ranks) for ranks in native["backends"]],
        )


@dataclasses.dataclass(frozen=True)
class SaveReport(_Fields):
    """Of a save, where it was committed. `print(report)` shows it as a table.

    Attributes:
        path, attempt, files, tensor_bytes: what was saved, by all ranks.
        replaced: whether an older checkpoint was.
        process_memory_bytes, shared_memory_bytes: what ranks wrote for others of their host, and how they got it.
        prepare_seconds, commit_seconds: of prepare_global_plan and finish.
        work: what this rank wrote; others have their own, `writer.work`.
        ranks: what each rank wrote, by rank. Empty where an AsyncSaver's save was not committed by this rank.
        summary: what that comes to, with the slowest ranks; None where there are no `ranks`.
        text: what `print(report)` shows.
        file_system: its type.
        backend, reason, queue_depth, buffer_bytes, buffer_count, transfer_bytes, huge_pages: of this process's reactor.
        origin: where these numbers came from: "defaults", a measurement, or "" where they were given.
        notes: what did not go the fast way, and why.
    """

    path: str
    attempt: str
    files: int
    tensor_bytes: int
    replaced: bool
    process_memory_bytes: int
    shared_memory_bytes: int
    prepare_seconds: float
    commit_seconds: float
    work: WorkReport
    ranks: list[RankReport]
    summary: RankSummary | None
    text: str = dataclasses.field(repr=False)
    file_system: str
    notes: list[str]
    backend: str
    reason: str
    queue_depth: int
    buffer_bytes: int
    buffer_count: int
    transfer_bytes: int
    huge_pages: bool
    origin: str

    @classmethod
    def of(cls, native: dict[str, Any]) -> SaveReport:
        summary = native["summary"]
        return cls(
            **native
            | {
                "work": WorkReport(**native["work"]),
                "ranks": [RankReport(**rank | {"work": WorkReport(**rank["work"])}) for rank in native["ranks"]],
                "summary": None if summary is None else RankSummary.of(summary),
            }
        )

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class LoadReport(_Fields):
    """Of this rank's load.

    Attributes:
        tensor_bytes: that were asked for.
        read_bytes, verified_bytes: from the files, and those of them that a digest covered.
        process_memory_bytes, shared_memory_bytes: taken from other ranks of this host, which read and checked them.
        work, notes, backend, reason, queue_depth, buffer_bytes, buffer_count, transfer_bytes, huge_pages,
            origin: as of a save.
    """

    tensor_bytes: int
    read_bytes: int
    verified_bytes: int
    process_memory_bytes: int
    shared_memory_bytes: int
    work: WorkReport
    notes: list[str]
    backend: str
    reason: str
    queue_depth: int
    buffer_bytes: int
    buffer_count: int
    transfer_bytes: int
    huge_pages: bool
    origin: str

    @staticmethod
    def add(native: dict[str, Any], sums: dict[str, Any]) -> None:
        """Of several reads that are one load: bytes and work are summed in `sums`, notes told once."""
        for key, value in native.items():
            if key == "work":
                sums[key] = sums.get(key, WorkReport()) + WorkReport(**value)
            elif key == "notes":
                sums[key] = list(dict.fromkeys([*sums.get(key, []), *value]))
            else:
                is_sum = key.endswith("_bytes") and key not in ("buffer_bytes", "transfer_bytes")
                sums[key] = sums.get(key, 0) + value if is_sum else value
