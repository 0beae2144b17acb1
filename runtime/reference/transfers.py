"""Transfers between DRAM and on-chip memories."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from h2learn.runtime.operation import Bytes, Operation, Work, moved_bitmap_bytes, spans, transfer_range

from .values import Buffers


def load(op: Operation, buffers: Buffers) -> Work:
    """``ld``: strided rows, zero where the row or column does not exist."""
    counts = {"rows": 0, "zero_rows": 0, "bytes": 0}
    for exists, source, target in _rows(op):
        if exists:
            _copy(op, buffers["src"][source], buffers["dst"][target])
            counts["rows"] += 1
            counts["bytes"] += _moved(op, buffers["src"][source])
        else:
            buffers["dst"][target] = 0
            counts["zero_rows"] += 1
    return Work(counts)


def store(op: Operation, buffers: Buffers) -> Work:
    """``st``: strided rows, dropped where the row or column does not exist."""
    counts = {"rows": 0, "zero_rows": 0, "bytes": 0}
    for exists, source, target in _rows(op):
        counts["rows" if exists else "zero_rows"] += 1
        if exists:
            _copy(op, buffers["src"][source], buffers["dst"][target])
            counts["bytes"] += _moved(op, buffers["src"][source])
    return Work(counts)


def _copy(op: Operation, source: Bytes, target: Bytes) -> None:
    """Copy a row; of gradient slots the bitmaps and live values."""
    if op.choice("mode") == "plain":
        target[:] = source
        return
    slot = op.number("slot")
    for first in range(0, op.number("run"), slot):
        live = int(np.bitwise_count(source[first : first + 8]).sum())
        end = first + min(8 + live * op.number("item"), slot)
        target[first:end] = source[first:end]


def _rows(op: Operation) -> Iterator[tuple[bool, slice, slice]]:
    run = op.number("run")
    origin = {name: op.operands[name].address - start for name, (start, _) in spans(op).items()}
    rows, columns = transfer_range(op, 2), transfer_range(op, 3)
    for index in np.ndindex(*(op.number(f"n{d}") for d in range(4))):
        exists = rows[0] <= index[2] < rows[1] and columns[0] <= index[3] < columns[1]
        source, target = (
            origin[name] + sum(i * op.number(f"{name[0]}s{d}") for d, i in enumerate(index)) for name in ("src", "dst")
        )
        yield exists, slice(source, source + run), slice(target, target + run)


def _moved(op: Operation, row: Bytes) -> int:
    if op.choice("mode") == "plain":
        return row.size
    slot, item = op.number("slot"), op.number("item")
    bitmaps = row.reshape(-1, slot)[:, :8]
    return moved_bitmap_bytes(slot, item) * len(bitmaps) + int(np.bitwise_count(bitmaps).sum()) * item
