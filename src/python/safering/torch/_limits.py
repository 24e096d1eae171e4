"""SaveLimits: what a save in the background may take from the training loop."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import _native


@dataclasses.dataclass(frozen=True)
class SaveLimits:
    """Of one rank's writes, kept on average.

    Args:
        bytes_per_second: to the disk; 0: as fast as it goes.
        processor_share: of one core, for digests, copies and submission; 0: no limit. 0.1 lets native code run for a
            tenth of the time.
    """

    bytes_per_second: int = 0
    processor_share: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_second < 0 or not 0 <= self.processor_share <= 1:
            raise ValueError(f"limits must not be negative, and a share at most 1: {self}")

    def native(self) -> _native.SaveLimits:
        return _native.SaveLimits(self.bytes_per_second, self.processor_share)


def check_limits(limits: Any) -> None:
    if not isinstance(limits, SaveLimits):
        raise TypeError(f"limits must be a SaveLimits, not {limits!r}")
