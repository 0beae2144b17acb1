"""The accesses derived from descriptors, against what the plain reference really reads and writes."""

import numpy as np
import pytest

from h2learn.backends.h2learn import isa
from h2learn.runtime import reference
from h2learn.runtime.operation import Memories, Operand, Operation
from h2learn.runtime.regions import accesses, strided

BYTES = 1 << 16
START = BYTES // 2
COORDINATES = ("y", "x", "pos", "neu", "tick")
COMPUTING = sorted(row.mnemonic for row in isa.INSTRUCTIONS if row.reads or row.writes)
KINDS = {"v.reduce": (*range(5), 9, 10), "v.loss": (5, 6), "v.map": (7, 8, *range(11, 17))}
KINDS |= {"v.stat": range(3), "v.fold": (3, 4), "v.norm": (5, 6)}
POOLS = ((0, 0, 2), (0, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 2), (2, 1, 1))  # kind, source, result: what v.pool can do


def descriptor(mnemonic, rng):
    """A random legal descriptor of small sizes."""
    kind = next(f.of for f in isa.BY_MNEMONIC[mnemonic].fields if f.kind is isa.Kind.DESC)
    desc = {}
    for field in isa.DESCRIPTOR_BY_NAME[kind].fields:
        if field.values:
            desc[field.name] = int(rng.integers(len(field.values)))
        elif field.kind is isa.Kind.F32:
            desc[field.name] = float(rng.integers(0, 3)) / 2
        else:
            desc[field.name] = int(rng.integers(1, 4))
    desc |= {name: int(rng.choice([3, 8, 13])) for name in ("c", "k") if name in desc}
    desc |= {name: int(rng.choice([4, 16])) for name in ("gblk", "ublk") if name in desc}
    if mnemonic in KINDS:
        desc["kind"] = int(rng.choice(KINDS[mnemonic]))
    if mnemonic == "v.pool":
        desc["kind"], desc["src"], desc["dst"] = POOLS[int(rng.integers(len(POOLS)))]
    if mnemonic == "v.unpool":
        desc["src"], desc["dst"] = ((1, 1), (2, 3))[int(rng.integers(2))]
    if mnemonic == "v.grad" and desc["seen"]:
        desc |= {"surrogate": 0, "detach": 1, "bounded": 0, "counted": 0}
    if mnemonic == "v.lif" and desc["counted"]:
        desc["spike"] = 1
    if mnemonic == "v.pack":
        desc |= {"planes": int(rng.choice([12, 17])), "frac": 8, "signed": 1}  # holds what fill gives, as either type
    if mnemonic == "v.tune":
        desc["drive"] = 0
    if mnemonic == "v.tune" or (mnemonic == "v.grad" and (desc["seen"] or desc["counted"])):
        desc["reset"] %= 4  # all but hard_delayed
    if mnemonic == "v.drop":
        desc["dst"] %= 3  # numbers, slots
    if kind == "xfer":
        desc |= {"mode": 0, "run": int(rng.integers(1, 9))}
        desc |= {f"{side}s{d}": int(rng.integers(-40, 41)) for side in "sd" for d in range(4)}
    return desc


def operation(mnemonic, rng):
    row = isa.BY_MNEMONIC[mnemonic]
    names = [f.name for f in row.fields if f.kind is isa.Kind.AREG]
    operands = {}
    for number, name in enumerate(names):
        memory = isa.MEMORIES[1 + number % 7]
        if name == {"ld": "src", "st": "dst"}.get(mnemonic):
            memory = "DRAM"
        operands[name] = Operand(memory, START + 4096 * (number // 7))
        if name in COORDINATES and name not in row.reads:
            operands[name] = Operand("DRAM", int(rng.integers(-2, 2)) if name in ("y", "x") else 0)
    fields = {"mode": 0, "masked": int(rng.integers(2)), "shape": 0}
    init = any(f.name == "init" for f in row.fields) and bool(rng.integers(2))
    return Operation(7, mnemonic, operands, descriptor(mnemonic, rng), init, fields)


def touched(op, write):
    """The bytes that ``accesses`` names, one flag per byte of every memory."""
    flags = {name: np.zeros(BYTES, dtype=bool) for name in isa.MEMORIES}
    for access in accesses(op):
        if access.write == write:
            operand = op.operands[access.operand]
            offsets = np.zeros(1, dtype=np.int64)
            for count, stride in zip(access.counts, access.strides, strict=True):
                offsets = (offsets[:, None] + np.arange(count) * stride).reshape(-1)
            places = operand.address + access.offset + (offsets[:, None] + np.arange(access.run)).reshape(-1)
            assert access.size == places.size
            assert (places.min(), places.max() + 1) == (operand.address + access.low, operand.address + access.high)
            flags[operand.memory][places] = True
    return flags


def fill(op, memories, rng):
    """Legal contents: small reals everywhere, labels in range, few samples valid."""
    for array in memories.arrays.values():
        array[:] = (rng.integers(-8, 9, BYTES // 4) / 4).astype(np.float32).view(np.uint8)
    if op.mnemonic == "v.loss":
        memories.view(op.operands["label"], 4 * int(op.desc["n"]))[...] = 0
    return memories


def outcome(op, rng_seed, keep, background):
    """Memories after ``op``: bytes outside ``keep`` were ``background`` before it."""
    memories = fill(op, Memories(dict.fromkeys(isa.MEMORIES, BYTES)), np.random.default_rng(rng_seed))
    for name, array in memories.arrays.items():
        array[~keep[name]] = background
    before = {name: array.copy() for name, array in memories.arrays.items()}
    reference.execute(op, memories)
    return before, memories.arrays


@pytest.mark.parametrize("mnemonic", COMPUTING)
def test_nothing_else_is_read_or_written(mnemonic):
    for seed in range(12):
        op = operation(mnemonic, np.random.default_rng([seed, 1]))
        read, written = touched(op, False), touched(op, True)
        results = [outcome(op, seed, read, background) for background in (0, 1)]
        slots = "go" in op.operands or op.desc.get("dst") == 3 or (mnemonic == "v.reduce" and op.desc["kind"] == 3)
        slots |= mnemonic == "v.lif" and op.desc["save_u"] == 2
        slots |= mnemonic == "v.norm" and op.desc["kind"] == 6
        slots |= mnemonic in ("v.map", "v.drop") and op.desc["dst"] == 2
        for name in isa.MEMORIES:
            for before, after in results:
                assert (before[name] == after[name])[~written[name]].all(), (seed, name, "wrote more")
            first, second = results[0][1][name], results[1][1][name]
            same = first == second
            if not slots:
                assert same[written[name]].all(), (seed, name, "read more, or wrote less")


def test_rows_that_touch_become_one():
    access = strided("src", 5, 8, (2, 3, 1, 4), (1000, 32, 77, 8), False)
    assert (access.run, access.counts, access.strides) == (96, (2,), (1000,))
    assert (access.low, access.high, access.size) == (5, 5 + 1000 + 96, 192)
    assert strided("src", 5, 8, (2, 0, 1, 4), (1000, 32, 77, 8), False).size == 0


def test_backward_strides_extend_downwards():
    access = strided("dst", 100, 2, (1, 1, 3, 2), (0, 0, -10, 4), True)
    assert (access.low, access.high) == (80, 106) and access.counts == (3, 2)
