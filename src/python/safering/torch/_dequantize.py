"""The arithmetic of quantised weights: blocks with scales -> the numbers that they stand for, rounded from float32 to a
dtype, into a tensor. torch's operations, on the device of their arguments."""

from __future__ import annotations

import functools
import math

import torch

# OCP Microscaling Formats 1.0, 5.3.3 and 5.4.1: codes 8 to 15 of E2M1 are the negatives of 0 to 7; E8M0 is a power of
# two, or NaN.
_E2M1 = [sign * value for sign in (1.0, -1.0) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
#: Of a byte with two of them, the lower four bits first.
_E2M1_PAIRS = torch.tensor(
    [(_E2M1[byte & 15], _E2M1[byte >> 4]) for byte in range(256)], dtype=torch.float32, device="cpu"
)
_E8M0 = torch.tensor(
    [(2.0 ** (byte - 127),) for byte in range(255)] + [(math.nan,)], dtype=torch.float32, device="cpu"
)
# Elements that one call of torch works on. On a CPU few enough that torch does not share them among its own threads,
# which wait for each other actively and stall where cores are scarce; thread_count of ours work on parts of their own.
_CPU_SLAB = 1 << 15
_DEVICE_SLAB = 1 << 24

Shape = tuple[int, ...]


def multiply_blocks(
    weight: torch.Tensor, scales: torch.Tensor, begin: Shape, block: int, dtype: torch.dtype, target: torch.Tensor
) -> None:
    """`weight` lies at `begin` of the last two dimensions, the first of `scales` in the block of that place."""
    if weight.dim() > 2:
        for one_weight, one_scales, one_target in zip(weight, scales, target):
            multiply_blocks(one_weight, one_scales, begin, block, dtype, one_target)
        return
    rows, columns = weight.shape
    block_of_column = (torch.arange(columns, device=weight.device) + begin[1] % block) // block
    row = 0
    for scale in scales.to(torch.float32)[:, block_of_column]:
        # To the end of this row of blocks, the first of which may have begun earlier.
        end = min(rows, row + block - (begin[0] + row) % block)
        step = max(1, _slab(weight.device) // columns)
        for first in range(row, end, step):
            some = slice(first, min(end, first + step))
            target[some] = (_to_float32(weight[some]) * scale).to(dtype)
        row = end


def _to_float32(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.itemsize != 1 or tensor.device.type != "cpu":
        return tensor.to(torch.float32)
    # Four times as fast on a CPU as torch's own conversion.
    codes = tensor.view(torch.uint8).to(torch.int32)
    return _values_of(tensor.dtype).index_select(0, codes.flatten()).view(tensor.shape)


@functools.cache
def _values_of(dtype: torch.dtype) -> torch.Tensor:
    """Of each code of a dtype of one byte."""
    return torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype).to(torch.float32)


def expand_mxfp4(
    blocks: torch.Tensor, scales: torch.Tensor, skip: int, dtype: torch.dtype, target: torch.Tensor
) -> None:
    """Values from `skip` of the groups `blocks`, `[..., G, B]`, into `target`, `[..., n]`."""
    slab = _slab(blocks.device) // 2  # two values a byte
    if blocks.dim() > 2 and blocks.numel() > slab:
        step = slab // blocks[0].numel()
        if step == 0:
            for one_blocks, one_scales, one_target in zip(blocks, scales, target):
                expand_mxfp4(one_blocks, one_scales, skip, dtype, one_target)
            return
        for first in range(0, len(blocks), step):
            some = slice(first, first + step)
            expand_mxfp4(blocks[some], scales[some], skip, dtype, target[some])
        return
    look_up = torch.nn.functional.embedding
    values = look_up(blocks.to(torch.int32), _E2M1_PAIRS.to(blocks.device)).flatten(-2)
    powers = look_up(scales.view(torch.uint8).to(torch.int32), _E8M0.to(blocks.device))
    values = (values * powers).flatten(-2)
    target.copy_(values[..., skip : skip + target.shape[-1]].to(dtype))


def _slab(device: torch.device) -> int:
    return _CPU_SLAB if device.type == "cpu" else _DEVICE_SLAB
