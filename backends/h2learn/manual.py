"""The instruction-set manual, generated from the instruction table: ``docs/isa.md``, and the table as JSON.

``python -m h2learn.backends.h2learn.manual docs/isa.md`` rewrites the page (``.json``: the table).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from . import isa
from .encoder import LAYOUT
from .machine import load_machine, names
from .object_file import DRAM_BASE

_INTRODUCTION = """\
# Instruction set

Generated from `backends/h2learn/isa.py` by `python -m h2learn.backends.h2learn.manual docs/isa.md`; do not edit.
H2Learn-style: the instruction set and the micro-architecture are this project's own. The exact arithmetic of each
instruction, its order of summation and the layouts of tiles in memory are in [semantics.md](semantics.md)."""


def page() -> str:
    """Return the manual as Markdown."""
    blocks = [_INTRODUCTION, *_overview(), *_memory_map()]
    blocks.append("## Instructions")
    for row in isa.INSTRUCTIONS:
        blocks += _instruction(row)
    blocks += [
        "## Descriptors",
        "Written one field at a time: `cfg c0.imgs, 32`. All fields start as 0. Signed values are extended to 64 bits "
        "in the instruction word, `f32` fields carry binary32 bits.",
    ]
    for descriptor in isa.DESCRIPTORS:
        blocks += _descriptor(descriptor)
    return "\n\n".join(blocks) + "\n"


def table_json() -> str:
    """Return the whole table, with the bit position of every operand, as JSON."""
    table = isa.table() | {
        "hash": isa.isa_hash(),
        "opcode_bits": isa.OPCODE_BITS,
        "layout": {name: {item.field.name: item.shift for item in row} for name, row in LAYOUT.items()},
    }
    return json.dumps(table, indent=1, default=_plain) + "\n"


def _overview() -> list[str]:
    rows = [
        (
            f"[`{row.mnemonic}`](#{row.mnemonic.replace('.', '')})",
            f"`{row.opcode:#04x}`",
            _engine(row),
            f"`{row.action}`",
        )
        for row in isa.INSTRUCTIONS
    ]
    return [
        f"Version {isa.ISA_VERSION}, hash `{isa.isa_hash()}`. An instruction is one {8 * isa.WORD_BYTES}-bit "
        f"little-endian word: the opcode in bits 0 to {isa.OPCODE_BITS - 1}, then the fields without gaps. All bits "
        "above the last field are reserved: zero when encoded, refused when decoded.",
        _table(("instruction", "opcode", "engine", "action"), rows),
        f"Loops nest up to {isa.MAX_LOOP_DEPTH} deep. There are {isa.ADDRESS_REGISTERS} address registers (`a0` reads "
        f"as DRAM address 0 and cannot be written) and {isa.SEMAPHORES} counting semaphores of up to "
        f"{isa.SEMAPHORE_MAX}. Engines (queues): {', '.join(f'`{name}`' for name in isa.ENGINES)}.",
    ]


def _memory_map() -> list[str]:
    machines = [load_machine(name) for name in names()]
    rows = [
        (str(number), f"`{name}`", _HOLDS[name], *(_size(machine.memory_bytes(name)) for machine in machines))
        for number, name in enumerate(isa.MEMORIES)
    ]
    header = ("number", "memory", "holds", *(f"`{machine.name}`" for machine in machines))
    return [
        "## Memories",
        f"Every memory has byte addresses from 0. Programs and data use DRAM from {DRAM_BASE:#x} on; instruction words "
        "are not in DRAM.",
        _table(header, rows),
    ]


_HOLDS = {
    "DRAM": "every tensor of the program: parameters, optimizer state, inputs, outputs, saved activations",
    "W": "weights in storage type",
    "S": "spikes and real inputs",
    "U": "membrane potentials in storage type, all or those inside the window",
    "G": "gradient slots",
    "M": "surrogate masks, pool winners",
    "A": "binary32 sums, weight gradients, neuron constants",
    "L": "look-up tables",
}


def _instruction(row: isa.Instruction) -> list[str]:
    placed = LAYOUT[row.mnemonic]
    layout = [("opcode", f"0-{isa.OPCODE_BITS - 1}", "", f"`{row.opcode:#04x}`", "")]
    end = isa.OPCODE_BITS
    for item in placed:
        end = item.shift + item.field.bits
        layout.append(
            (
                f"`{item.field.name}`",
                f"{item.shift}-{end - 1}",
                item.field.kind.value,
                _range(item.field),
                item.field.doc,
            )
        )
    if end < 8 * isa.WORD_BYTES:
        layout.append(("reserved", f"{end}-{8 * isa.WORD_BYTES - 1}", "", "0", ""))
    effects = ", ".join(f"reads `{name}`" for name in row.reads)
    effects += ("; " if row.reads and row.writes else "") + ", ".join(f"writes `{name}`" for name in row.writes)
    facts = [f"Engine: {_engine(row)}.", f"Cycles: `{row.latency}`."]
    if effects:
        facts.append(f"Memory: {effects}.")
    return [
        f"### {row.mnemonic}",
        row.doc,
        f"    {row.action}",
        " ".join(facts),
        _table(("field", "bits", "kind", "legal values", "meaning"), layout),
    ]


def _descriptor(descriptor: isa.Descriptor) -> list[str]:
    rows = [
        (str(number), f"`{field.name}`", f"{field.kind.value} {field.bits}", _range(field), field.doc)
        for number, field in enumerate(descriptor.fields)
    ]
    first = 1 if descriptor.name == "areg" else 0
    return [
        f"### {descriptor.name}: `{descriptor.prefix}{first}` to `{descriptor.prefix}{descriptor.count - 1}`",
        f"{descriptor.doc[0].upper()}{descriptor.doc[1:]}.",
        _table(("number", "field", "kind, bits", "legal values", "meaning"), rows),
    ]


def _engine(row: isa.Instruction) -> str:
    return {isa.CONTROL: "front end", isa.BY_FIELD: "the one named"}.get(row.engine, row.engine)


def _range(field: isa.Field) -> str:
    if field.kind is isa.Kind.ENUM:
        return ", ".join(f"`{value}`" for value in field.values)
    if field.kind in (isa.Kind.F32, isa.Kind.RAW):
        return "any"
    if field.kind is isa.Kind.INT:
        return f"±2^{field.bits - 1}"
    return f"{field.minimum} to {field.maximum}"


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r} is not plain data")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(table_json() if target.suffix == ".json" else page(), encoding="utf-8")
