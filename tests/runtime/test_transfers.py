"""Transfers of rows of every length on the compiled kernels, against the plain reference."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.machine import load_machine
from h2learn.runtime import fast, reference
from h2learn.runtime.operation import Memories, Operand, Operation
from h2learn.runtime.team import COUNTERS
from h2learn.runtime.timing import slot_burst_bytes

DRAM_BASE = 4096
FIELDS = next(d.fields for d in isa.DESCRIPTORS if d.name == "xfer")


def transfer(mnemonic: str, desc: dict[str, int], y: int, x: int, start: int) -> Operation:
    inside, outside = Operand("S", 3), Operand("DRAM", DRAM_BASE + start)
    operands = dict(zip(("dst", "src"), (inside, outside) if mnemonic == "ld" else (outside, inside), strict=True))
    operands |= {"y": Operand("S", y), "x": Operand("S", x)}
    return Operation(0, mnemonic, operands, dict.fromkeys((f.name for f in FIELDS), 0) | desc, False, {})


def results(op: Operation, room: int) -> list[dict[str, bytes]]:
    """All bytes after the instruction, executed by either implementation on the same random ones."""
    found = []
    for execute in (fast.execute, reference.execute):
        memories = Memories({"S": room, "DRAM": room}, dram_base=DRAM_BASE)
        rng = np.random.default_rng(room)
        for array in memories.arrays.values():
            array[:] = rng.integers(0, 256, array.size, dtype=np.uint8)
        execute(op, memories)
        found.append({name: array.tobytes() for name, array in memories.arrays.items()})
    return found


@pytest.mark.parametrize("mnemonic", ["ld", "st"])
@pytest.mark.parametrize("run", [1, 2, 3, 4, 7, 8, 12, 16, 24, 31, 32, 33, 64, 65, 128, 200, 1030, 2048, 2049, 40000])
def test_rows_of_any_length(mnemonic: str, run: int) -> None:
    counts = {"n0": 1, "n1": 2, "n2": 3, "n3": 4}
    far, near = {"s3": run + 3, "s2": 4 * run + 17, "s1": 13 * run + 71}, {"s3": run, "s2": 4 * run, "s1": 12 * run}
    source, target = (far, near) if mnemonic == "ld" else (near, far)
    desc = counts | {f"s{name}": n for name, n in source.items()} | {f"d{name}": n for name, n in target.items()}
    for y, x, limits in [(0, 0, (3, 4)), (-1, -2, (2, 3)), (1, -1, (3, 2)), (0, 4, (3, 4))]:
        shown = desc | {"run": run, "ylim": limits[0], "xlim": limits[1]}
        op = transfer(mnemonic, shown, y, x, start=20 * run)
        ours, plain = results(op, 60 * run + 500)
        assert ours == plain


@pytest.mark.parametrize("counts", [(1, 1, 5, 1), (1, 5, 1, 1), (5, 1, 1, 1), (2, 3, 1, 1), (2, 1, 3, 1), (1, 1, 1, 1)])
def test_the_innermost_dimension_may_be_one(counts: tuple[int, ...]) -> None:
    desc = {f"n{d}": count for d, count in enumerate(counts)} | {"run": 6, "ylim": 4, "xlim": 1}
    desc |= {f"ss{d}": stride for d, stride in enumerate((211, 97, 13, 7))}
    desc |= {f"ds{d}": stride for d, stride in enumerate((101, 31, 9, 6))}
    ours, plain = results(transfer("ld", desc, 0, 0, start=5), 2000)
    assert ours == plain


def slots_case(rng: np.random.Generator) -> tuple[Operation, Memories]:
    """A transfer of gradient slots between memories that hold some: rows and images may touch in DRAM, or not."""
    item, channels = int(rng.choice([2, 4])), int(rng.choice([3, 16, 32]))
    slot = 8 + -(-channels * item // 8) * 8
    counts = [int(n) for n in rng.choice([1, 1, 2, 3, 4], 4)]
    run = slot * int(rng.choice([1, 2, 3, 8]))
    desc = {"mode": 1, "slot": slot, "item": item, "run": run, "pack": int(rng.choice([0, 1, 2, 3, 4, 6, 12]))}
    for side in "sd":
        size = run
        for d in (3, 2, 1, 0):
            size += slot * int(rng.choice([0, 0, 0, 1]))
            desc |= {f"n{d}": counts[d], f"{side}s{d}": size}
            size *= counts[d]
    desc |= {"ylim": int(rng.integers(1, 5)), "xlim": int(rng.integers(1, 5))}
    y, x = (int(rng.choice([0, 0, 0, -1, 1])) for _ in range(2))
    room = max(desc["ss0"] * counts[0], desc["ds0"] * counts[0])
    memories = Memories({"S": 8 + 2 * room, "DRAM": 2 * room}, dram_base=DRAM_BASE)
    for name, array in memories.arrays.items():
        array[:] = rng.integers(0, 256, array.size, dtype=np.uint8)
        bitmaps = rng.random((2 * room // slot, 64)) < rng.choice([0.1, 0.5, 1])
        bitmaps[:, channels:] = False
        slots = array[3 if name == "S" else 0 :][: len(bitmaps) * slot].reshape(-1, slot)
        slots[:, :8] = np.packbits(bitmaps, axis=1, bitorder="little")
    op = transfer("ld" if rng.integers(2) else "st", desc, y, x, start=0)
    return op, memories


def test_slots_are_copied_and_counted_piece_by_piece() -> None:
    """Every piece alone, as threads would do them, leaves the bytes of the reference and adds up to its bursts."""
    rng, machine, cut = np.random.default_rng(0), load_machine("h2l-v0"), 0
    for _ in range(150):
        op, memories = slots_case(rng)
        machine = replace(machine, dram=replace(machine.dram, burst_bytes=int(rng.choice([32, 48, 64]))))
        twin = Memories({name: array.size for name, array in memories.arrays.items()}, dram_base=DRAM_BASE)
        for name, array in memories.arrays.items():
            twin.arrays[name][:] = array
        expected = slot_burst_bytes(op, memories, machine)
        moved = reference.execute(op, memories).counts["bytes"]
        plan = fast.plan_transfer(op, twin, machine.dram.burst_bytes)
        words, counters = np.array(plan.words, np.int64), np.zeros(COUNTERS, np.int64)
        call = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)(plan.call.address)
        for unit in rng.permutation(plan.units).tolist():
            assert call(words.ctypes.data, plan.parts, unit, unit + 1, counters.ctypes.data) == 1
        assert counters[:2].tolist() == [moved, expected]
        for name, array in memories.arrays.items():
            np.testing.assert_array_equal(twin.arrays[name], array)
        cut += plan.units > 1
    assert cut > 100
