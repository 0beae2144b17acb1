"""Transfers between DRAM and on-chip memories."""

from __future__ import annotations

import numpy as np

from h2learn.dialects.h2.layouts import Bits, Bytes, Memory

from .job import Ints, Job


def load(job: Job) -> None:
    """Copy rows from DRAM; rows that do not exist are zero."""
    sources, targets, exist = _rows(job)
    rows = np.zeros((len(sources), job.integer("run")), dtype=np.uint8)
    rows[exist] = _gather(job["src"].memory, sources[exist], job.integer("run"))
    _scatter(job["dst"].memory, targets, rows)


def store(job: Job) -> None:
    """Copy rows to DRAM; rows that do not exist are dropped."""
    sources, targets, exist = _rows(job)
    _scatter(job["dst"].memory, targets[exist], _gather(job["src"].memory, sources[exist], job.integer("run")))


def _rows(job: Job) -> tuple[Ints, Ints, Bits]:
    """Return source address, destination address and existence of every row of a transfer."""
    grid = np.indices(job.size("n0", "n1", "n2", "n3"), dtype=np.int64).reshape(4, -1)
    row, column = job.coordinate("y") + grid[2], job.coordinate("x") + grid[3]
    exist = (row >= 0) & (row < job.integer("ylim")) & (column >= 0) & (column < job.integer("xlim"))
    sources = job["src"].address + np.array(job.size("ss0", "ss1", "ss2", "ss3")) @ grid
    targets = job["dst"].address + np.array(job.size("ds0", "ds1", "ds2", "ds3")) @ grid
    return sources, targets, exist


def _gather(memory: Memory, addresses: Ints, run: int) -> Bytes:
    """Return ``[row, run]`` bytes."""
    if not addresses.size:
        return np.zeros((0, run), dtype=np.uint8)
    low = int(addresses.min())
    rows = memory.view(low, int(addresses.max()) - low + run)
    return np.asarray(rows[(addresses - low)[:, None] + np.arange(run)], dtype=np.uint8)


def _scatter(memory: Memory, addresses: Ints, rows: Bytes) -> None:
    """Write ``[row, run]`` bytes."""
    if not addresses.size:
        return
    low, run = int(addresses.min()), rows.shape[1]
    memory.view(low, int(addresses.max()) - low + run)[(addresses - low)[:, None] + np.arange(run)] = rows
