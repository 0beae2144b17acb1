"""From an ``h2`` module to an object file: instruction words, initial data, symbols, note and location table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin

from h2learn.dialects.common import GRADIENT_SCALE_ATTRIBUTE, IoEntry, get_io, precision, source_of
from h2learn.dialects.h2 import InstructionOp, TensorSymbol, get_io_symbols, get_symbols, program_ops, verify_program
from h2learn.dialects.h2.ops import LOOPS_ATTRIBUTE, setup_words

from .encoder import encode
from .errors import H2LearnError
from .machine import Machine
from .numerics import in_planes, round_to_storage, storage_dtype
from .object_file import DATA_SECTIONS, DRAM_BASE, PAGE_BYTES, ObjectFile, Symbol, new_note


def emit(
    module: builtin.ModuleOp,
    parameters: Mapping[str, bytes | npt.NDArray[Any]],
    machine: Machine,
    *,
    batch: int = 1,
    time_steps: int = 1,
    **note: Any,
) -> ObjectFile:
    """Return the object file of an ``h2`` module.

    ``parameters`` gives the initial bytes of symbols in ``.rodata`` and ``.data``, as device bytes or as an array of
    the symbol's type and device shape; the storage copy (shadow) of an f32 array is made here unless it is given.
    ``note`` adds to the note or replaces what is derived from the module: ``precision``, ``training`` (there is a
    label), ``gradient_scale`` (module attribute ``h2learn.gradient_scale``). Raises H2LearnError when contents do not
    fit their symbol and VerifyException when the module is not a legal program.
    """
    verify_program(module)
    ops = program_ops(module)
    symbols = get_symbols(module)
    sections = {name: [s for s in symbols.values() if s.section == name] for name in DATA_SECTIONS}
    ranges = {name: _range(members) for name, members in sections.items()}
    contents = {name: bytearray(end - start) for name, (start, end) in ranges.items() if name != "bss"}
    for name, raw in _all_contents(symbols, parameters).items():
        symbol = symbols[name]
        if symbol.section not in contents:
            raise H2LearnError(f"symbol {name!r} is in .{symbol.section} and cannot have initial contents")
        offset = symbol.address - ranges[symbol.section][0]
        contents[symbol.section][offset : offset + symbol.size] = raw
    for op in ops:
        if op.mnemonic == "setup":
            raw = b"".join(encode(mnemonic, fields) for mnemonic, fields in setup_words(op))
            offset = op.field("address") - ranges["rodata"][0]
            contents["rodata"][offset : offset + len(raw)] = raw
    derived = {
        "precision": "fp16" if precision(module) == "f16" else "fp32",
        "batch": batch,
        "time_steps": time_steps,
        "training": any(entry.role == "label" for entry in get_io(module)),
        "gradient_scale": _gradient_scale(module),
        "io": [_io_note(e, s, symbols) for e, s in zip(get_io(module), get_io_symbols(module), strict=True)],
    }
    return ObjectFile(
        text=b"".join(encode(op.mnemonic, op.named_fields(), f"pc {pc}") for pc, op in enumerate(ops)),
        rodata=bytes(contents["rodata"]),
        data=bytes(contents["data"]),
        bss_size=ranges["bss"][1] - ranges["bss"][0],
        bases={name: start for name, (start, _) in ranges.items()},
        symbols={s.name: Symbol(s.name, s.address, s.size, s.section) for s in symbols.values()},
        note=new_note(machine, **(derived | note)),
        locations=locations(ops),
    )


def locations(ops: Sequence[InstructionOp]) -> list[tuple[int, int, str, str]]:
    """Return ``(first pc, last pc, source, loops)`` of runs of instructions that share both; unknown are left out."""
    table: list[tuple[int, int, str, str]] = []
    for pc, op in enumerate(ops):
        loops = op.attributes.get(LOOPS_ATTRIBUTE)
        place = (source_of(op), loops.data if isinstance(loops, builtin.StringAttr) else "")
        if place == ("", ""):
            continue
        if table and table[-1][1] == pc - 1 and table[-1][2:] == place:
            table[-1] = (table[-1][0], pc, *place)
        else:
            table.append((pc, pc, *place))
    return table


def _range(symbols: Sequence[TensorSymbol]) -> tuple[int, int]:
    """Return the first page and the end of a section."""
    if not symbols:
        return DRAM_BASE, DRAM_BASE
    start = min(symbol.address for symbol in symbols) // PAGE_BYTES * PAGE_BYTES
    return start, max(symbol.address + symbol.size for symbol in symbols)


def _all_contents(
    symbols: Mapping[str, TensorSymbol], parameters: Mapping[str, bytes | npt.NDArray[Any]]
) -> dict[str, bytes]:
    found = {symbol.name: symbol.contents for symbol in symbols.values() if symbol.contents}
    for name, value in parameters.items():
        if name not in symbols:
            raise H2LearnError(f"there is no symbol {name!r}", hint=f"symbols: {', '.join(symbols)}")
        symbol = symbols[name]
        raw = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
        if len(raw) != symbol.size:
            raise H2LearnError(f"symbol {name!r} takes {symbol.size} bytes, found {len(raw)}")
        found[name] = raw
        if symbol.shadow and symbol.shadow not in parameters:
            copy = symbols[symbol.shadow]
            values = round_to_storage(np.frombuffer(raw, dtype="<f4"), copy.dtype).astype(storage_dtype(copy.dtype))
            found[copy.name] = in_planes(values.reshape(copy.shape), copy.plane).tobytes()
    return found


def _io_note(entry: IoEntry, symbol: TensorSymbol, symbols: Mapping[str, TensorSymbol]) -> dict[str, Any]:
    note: dict[str, Any] = {
        "name": entry.name,
        "role": entry.role,
        "symbol": symbol.name,
        "dtype": symbol.dtype,
        "shape": list(symbol.shape),
        "view": list(entry.view),
        "perm": list(entry.perm),
    }
    note |= {"bits": entry.bits} if entry.bits else {}
    if symbol.shadow:
        plane = symbols[symbol.shadow].plane
        note |= {"shadow": symbol.shadow} | ({"shadow_plane": plane} if plane else {})
    return note


def _gradient_scale(module: builtin.ModuleOp) -> float:
    attribute = module.attributes.get(GRADIENT_SCALE_ATTRIBUTE)
    return float(attribute.value.data) if isinstance(attribute, builtin.FloatAttr) else 1.0
