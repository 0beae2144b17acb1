"""Every cycle formula of the simulator, in one place.

All micro-architecture parameters are ours ("H2Learn-style"; the paper gives none). The rules:

* The front end executes one instruction per cycle (loops, ``cfg`` and ``addr`` included). ``signal`` and ``wait`` take
  no engine time; ``nop`` one cycle.
* An engine instruction takes ``START_UP[engine]`` cycles plus the cycles of its formula:

  ========  ================================================================================================
  fe.fill   ceil(taps * groups * k * (2^fan - 1) / builder_entries), on the builder: one adder per entry and cycle
  fe.run    ceil(k / lanes_k) * ceil(positions / lanes_p) * taps * groups * planes (1 for spikes); zero patterns
            cost their cycle. With ``skip_zero_patterns`` ceil(k / lanes_k) times the busiest of ``lanes_p`` lanes:
            ``lane_cycles`` counted by the execution
  be.*      the busiest processing element: ``pe_cycles`` counted from the actual bitmaps by the execution, for the
            mode of the instruction
  wu.run    ceil(k / lanes_k) * ceil(c * taps / lanes_c) * ceil(positions / fan)
  v.*       ceil(elements / lanes), elements = n*k (v.opt: n, with Adam 4n for a root and two divisions; v.reduce,
            v.rng, v.drop, v.spread: steps*n*k; v.stat, v.norm: steps*n*positions*k; v.fold: 8k; pools: results *
            window), v.loss: 8 passes (maximum, exp, sum, log, four for the gradient)
  ld, st    bytes in whole bursts / bytes_per_cycle; both engines share the DRAM channel. The latency before the
            first byte passes while the bytes of earlier transfers move: an engine starts its next transfer as
            early as bytes can follow without a gap
  ========  ================================================================================================

* ``lanes_k`` of fe.run is the first number of ``shape``; ``lanes_p`` is what the machine has: ``lanes // lanes_k``.
* DRAM rows that touch are one row; every row is rounded up to bursts. Of gradient slots, of which only bitmaps and live
  values move, every packed unit is rounded up: up to ``pack`` slots that touch in DRAM. ``ld`` of rows that do not
  exist costs nothing beyond the start-up (the on-chip zeros are written while other rows arrive).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.isa import BY_MNEMONIC
from h2learn.backends.h2learn.machine import Machine

from .operation import BITMAP_BYTES, Memories, Operation, moved_bitmap_bytes
from .regions import ADAMS, Access, Desc, conv_positions, existing_rows, groups, planes, taps

START_UP: dict[str, int] = {
    "FE": 8,  # pipeline: address, spike read, look-up, accumulate, write back (ours)
    "BE": 16,  # bitmap AND, leading-one search, dispatch, multiply, accumulate, write back (ours)
    "WUE": 12,  # table build, look-up, accumulate, write back (ours)
    "VEC": 8,  # operand read, up to five dependent operations, write back (ours)
}
BUILDER_START_UP = 4  # weight read and table write (ours)
LOSS_PASSES = 8
NOP_CYCLES = 1

_FE_SHAPES = tuple(
    int(value.split("x")[0]) for f in BY_MNEMONIC["fe.run"].fields if f.name == "shape" for value in f.values
)


def static_cycles(mnemonic: str, desc: Desc, fields: Mapping[str, int], machine: Machine) -> int | None:
    """Return the cycles of an engine instruction, or None where they depend on data.

    They do for ``be.*``, ``ld``, ``st``, and for ``fe.run`` that skips zero patterns.
    """
    if mnemonic == "fe.fill":
        fan = int(desc["fan"])
        entries = taps(desc) * groups(int(desc["c"]), fan) * int(desc["k"]) * ((1 << fan) - 1)
        return BUILDER_START_UP + -(-entries // machine.forward.builder_entries)
    if mnemonic == "fe.run":
        if machine.forward.skip_zero_patterns:
            return None
        lanes_k, lanes_p = forward_lanes(fields["shape"], machine.forward.lanes)
        passes = -(-int(desc["k"]) // lanes_k) * -(-conv_positions(desc) // lanes_p)
        return START_UP["FE"] + passes * taps(desc) * groups(int(desc["c"]), int(desc["fan"])) * planes(desc)
    if mnemonic == "wu.run":
        unit = machine.weight_update
        passes = -(-int(desc["k"]) // unit.lanes_k) * -(-int(desc["c"]) * taps(desc) // unit.lanes_c)
        return START_UP["WUE"] + passes * groups(conv_positions(desc), int(desc["fan"]))
    if mnemonic.startswith("v."):
        passes = -(-_vector_elements(mnemonic, desc) // machine.vector.lanes)
        return START_UP["VEC"] + passes * (LOSS_PASSES if mnemonic == "v.loss" else 1)
    return None


def counted_cycles(mnemonic: str, counts: Mapping[str, int]) -> int:
    """Return the cycles of ``be.*``, or of ``fe.run`` that skips zero patterns, from the counts of its execution."""
    if mnemonic == "fe.run":
        return START_UP["FE"] + counts["lane_cycles"]
    return START_UP["BE"] + counts["pe_cycles"]


def forward_lanes(shape: int, lanes: int) -> tuple[int, int]:
    """Return how many output channels and how many positions ``lanes`` look-up lanes serve in a lane shape."""
    lanes_k = min(_FE_SHAPES[shape], lanes)
    return lanes_k, lanes // lanes_k


def channel_cycles(moved_bytes: int, machine: Machine) -> int:
    """Return the cycles that a transfer of whole bursts occupies the DRAM channel."""
    return int(-(-moved_bytes // machine.dram.bytes_per_cycle))


def plain_burst_bytes(access: Access, machine: Machine) -> int:
    """Return the DRAM bytes of a plain transfer in whole bursts; ``access`` is its DRAM side."""
    burst = machine.dram.burst_bytes
    if not access.run:
        return 0
    return access.size // access.run * (-(-access.run // burst) * burst)


def slot_burst_bytes(op: Operation, memories: Memories, machine: Machine) -> int:
    """Return the DRAM bytes of a ``slots`` transfer in whole bursts, from the bitmaps in the source as it is now."""
    slot, item = int(op.desc["slot"]), int(op.desc["item"])
    live = np.bitwise_count(slot_bitmaps(op, memories)).astype(np.int64)
    held = np.minimum(moved_bitmap_bytes(slot, item) + live * item, slot)
    if not held.size:
        return 0
    units = np.add.reduceat(held, packed_units(op, len(held)))
    burst = machine.dram.burst_bytes
    return int((-(-units // burst) * burst).sum())


def packed_units(op: Operation, count: int) -> npt.NDArray[np.intp]:
    """Return the numbers of the slots with which packed units start, of the ``count`` slots that a transfer moves.

    A unit ends behind ``pack`` slots, and in front of a slot that does not touch the one before it in DRAM.
    """
    desc, side = op.desc, "s" if op.mnemonic == "ld" else "d"
    box = existing_rows(desc, op.operands["y"].address, op.operands["x"].address)
    extents = (int(desc["n0"]), int(desc["n1"]), box.high2 - box.low2, box.high3 - box.low3)
    strides = np.array([int(desc[f"{side}s{d}"]) for d in range(4)])
    rows = strides @ np.indices(extents, dtype=np.int64).reshape(4, -1)
    slot = int(desc["slot"])
    places = (rows[:, None] + np.arange(int(desc["run"]) // slot) * slot).reshape(-1)
    fresh = np.diff(places, prepend=places[0] - 2 * slot) != slot
    numbers = np.arange(count)
    since = numbers - np.maximum.accumulate(np.where(fresh, numbers, 0))
    return np.flatnonzero(since % max(1, int(desc["pack"])) == 0)


def slot_bitmaps(op: Operation, memories: Memories) -> npt.NDArray[np.uint64]:
    """Return the bitmaps of all slots that a ``slots`` transfer moves; it must be inside its memory."""
    desc, source = op.desc, op.operands["src"]
    box = existing_rows(desc, op.operands["y"].address, op.operands["x"].address)
    strides = tuple(int(desc[f"ss{d}"]) for d in range(4))
    slot = int(desc["slot"])
    shape = (int(desc["n0"]), int(desc["n1"]), box.high2 - box.low2, box.high3 - box.low3, int(desc["run"]) // slot)
    if 0 in shape:
        return np.zeros(0, dtype=np.uint64)
    array = memories.arrays[source.memory]
    start = source.address - (memories.dram_base if source.memory == "DRAM" else 0)
    offset = start + box.low2 * strides[2] + box.low3 * strides[3]
    packed: npt.NDArray[np.uint8] = np.ndarray(
        (*shape, BITMAP_BYTES), np.uint8, buffer=array, offset=offset, strides=(*strides, slot, 1)
    )
    return np.ascontiguousarray(packed).view(np.uint64).reshape(-1)


def _vector_elements(mnemonic: str, desc: Desc) -> int:
    if mnemonic in ("v.pool", "v.unpool"):
        return conv_positions(desc) * int(desc["k"]) * taps(desc)
    if mnemonic == "v.fold":
        return 8 * int(desc["k"])
    if mnemonic in ("v.stat", "v.norm"):
        return int(desc["steps"]) * int(desc["n"]) * int(desc["positions"]) * int(desc["k"])
    if mnemonic == "v.opt":
        return int(desc["n"]) * (4 if desc["kind"] in ADAMS else 1)
    elements = int(desc["n"]) * int(desc["k"])
    if mnemonic in ("v.reduce", "v.rng", "v.drop", "v.spread"):
        return elements * max(1, int(desc["steps"]))
    return elements
