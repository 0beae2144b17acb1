"""Where buffers lie in the on-chip memories: bump allocation that runs on from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from h2learn.backends.h2learn.errors import H2LearnError

ALIGNMENT = 64


@dataclass(frozen=True)
class Request:
    """A buffer: its memory and the bytes of all its slots."""

    memory: str
    total_bytes: int


def aligned(size: int) -> int:
    """Return ``size`` rounded up to the alignment of buffers and tensors."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(
    stages: Sequence[Sequence[Request]], capacity: dict[str, int], labels: Sequence[str] | None = None
) -> list[list[int]]:
    """Return the byte address of every buffer of every stage.

    All buffers of a stage lie apart. A stage starts where the one before ended, so that neighbours rarely share bytes
    and their transfers may overlap; when it does not fit there it starts at 0. Raises H2LearnError when one stage alone
    is larger than a memory.
    """
    top = dict.fromkeys(capacity, 0)
    addresses: list[list[int]] = []
    for number, stage in enumerate(stages):
        need = dict.fromkeys(capacity, 0)
        for request in stage:
            need[request.memory] += aligned(request.total_bytes)
        for memory, size in need.items():
            if size > capacity[memory]:
                raise H2LearnError(
                    f"stage {labels[number] if labels else number} needs {size} bytes of memory {memory}, which has"
                    f" {capacity[memory]}",
                    hint="set smaller tile limits or use a machine with more SRAM",
                )
            if top[memory] + size > capacity[memory]:
                top[memory] = 0
        placed: list[int] = []
        for request in stage:
            placed.append(top[request.memory])
            top[request.memory] += aligned(request.total_bytes)
        addresses.append(placed)
    return addresses
