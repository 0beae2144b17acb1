"""Instruction words to fields and back, derived from the instruction table.

The value of a ``cfg`` is given by its meaning: signed for INT descriptor fields (sign-extended to 64 bits in the
word), the index for ENUM, binary32 bits for F32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import H2LearnError
from .isa import BY_MNEMONIC, BY_OPCODE, DESCRIPTORS, INSTRUCTIONS, OPCODE_BITS, WORD_BYTES, Field, Instruction, Kind

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One instruction: ``fields`` maps field names to integers in the order of the table's row."""

    mnemonic: str
    fields: dict[str, int]


@dataclass(frozen=True, slots=True)
class Placed:
    """A field and its lowest bit in the word."""

    field: Field
    shift: int


LAYOUT: dict[str, tuple[Placed, ...]] = {
    row.mnemonic: tuple(
        Placed(field, OPCODE_BITS + sum(before.bits for before in row.fields[:index]))
        for index, field in enumerate(row.fields)
    )
    for row in INSTRUCTIONS
}
"""Where every field of every instruction lies."""


def check_fields(mnemonic: str, fields: Mapping[str, int], where: str = "") -> Instruction:
    """Return the row of ``mnemonic`` when ``fields`` are exactly its fields and legal; raises H2LearnError."""
    row = BY_MNEMONIC.get(mnemonic)
    if row is None:
        raise H2LearnError(f"there is no instruction {mnemonic!r}", location=where or None)
    if len(fields) != len(row.fields) or any(field.name not in fields for field in row.fields):
        expected, found = ", ".join(f.name for f in row.fields) or "none", ", ".join(fields) or "none"
        raise H2LearnError(f"{mnemonic} has the fields {expected}; found {found}", location=where or None)
    for field in row.fields:
        if field.kind is not Kind.RAW:
            _check_range(field, fields[field.name], mnemonic, where)
    if mnemonic == "cfg":
        _check_range(configured(fields, where), fields["value"], "cfg", where)
    return row


def configured(fields: Mapping[str, int], where: str = "") -> Field:
    """Return the descriptor field that a ``cfg`` writes; raises H2LearnError when there is none."""
    descriptor = DESCRIPTORS[fields["kind"]]
    index, number = fields["index"], fields["field"]
    if index >= descriptor.count:
        raise H2LearnError(
            f"cfg: there are {descriptor.count} {descriptor.name} descriptors, found number {index}",
            location=where or None,
        )
    if descriptor.name == "areg" and index == 0:
        raise H2LearnError("cfg: a0 reads as address 0 and cannot be written", location=where or None)
    if number >= len(descriptor.fields):
        raise H2LearnError(
            f"cfg: {descriptor.name} descriptors have {len(descriptor.fields)} fields, found number {number}",
            location=where or None,
        )
    return descriptor.fields[number]


def encode(mnemonic: str, fields: Mapping[str, int], where: str = "") -> bytes:
    """Return the 16-byte word of an instruction; raises H2LearnError when a field is missing, unknown or illegal."""
    row = check_fields(mnemonic, fields, where)
    word = row.opcode
    for placed in LAYOUT[mnemonic]:
        word |= (fields[placed.field.name] & ((1 << placed.field.bits) - 1)) << placed.shift
    return word.to_bytes(WORD_BYTES, "little")


def encode_program(program: Iterable[Decoded]) -> bytes:
    """Return the text of a program; errors name the pc."""
    return b"".join(encode(item.mnemonic, item.fields, f"pc {pc}") for pc, item in enumerate(program))


def decode(word: bytes, pc: int = 0) -> Decoded:
    """Return the instruction of a 16-byte word; raises H2LearnError that names ``pc`` when the word is not legal."""
    where = f"pc {pc}"
    if len(word) != WORD_BYTES:
        raise H2LearnError(f"an instruction has {WORD_BYTES} bytes, found {len(word)}", location=where)
    bits = int.from_bytes(word, "little")
    row = BY_OPCODE.get(bits & ((1 << OPCODE_BITS) - 1))
    if row is None:
        raise H2LearnError(f"unknown opcode {bits & ((1 << OPCODE_BITS) - 1):#04x}", location=where)
    fields: dict[str, int] = {}
    end = OPCODE_BITS
    for placed in LAYOUT[row.mnemonic]:
        raw = (bits >> placed.shift) & ((1 << placed.field.bits) - 1)
        fields[placed.field.name] = _signed(raw, placed.field.bits) if placed.field.kind is Kind.INT else raw
        end = placed.shift + placed.field.bits
    if bits >> end:
        raise H2LearnError(f"{row.mnemonic}: reserved bits {end} to 127 must be zero", location=where)
    if row.mnemonic == "cfg":
        for field in row.fields[:-1]:
            _check_range(field, fields[field.name], "cfg", where)
        if configured(fields, where).kind is Kind.INT:
            fields["value"] = _signed(fields["value"], 64)
    check_fields(row.mnemonic, fields, where)
    return Decoded(row.mnemonic, fields)


def decode_program(text: bytes) -> list[Decoded]:
    """Return all instructions of a text section; raises H2LearnError that names the pc of the first illegal word."""
    if len(text) % WORD_BYTES:
        raise H2LearnError(f"the text must be a multiple of {WORD_BYTES} bytes, found {len(text)}")
    words = np.frombuffer(text, dtype="<u8").reshape(-1, 2).astype(np.uint64)
    opcodes = (words[:, 0] & np.uint64((1 << OPCODE_BITS) - 1)).astype(np.int64)
    program: list[Decoded | None] = [None] * len(words)
    for opcode in np.unique(opcodes):
        row = BY_OPCODE.get(int(opcode))
        pcs = np.flatnonzero(opcodes == opcode)
        if row is None or row.mnemonic == "cfg":
            continue
        _decode_row(row, pcs, words[pcs], program)
    for pc, item in enumerate(program):
        if item is None:
            program[pc] = decode(text[pc * WORD_BYTES : (pc + 1) * WORD_BYTES], pc)
    return [item for item in program if item is not None]


def _decode_row(row: Instruction, pcs: npt.NDArray[np.int64], words: U64, program: list[Decoded | None]) -> None:
    """Fill in the legal words of one instruction; illegal ones stay None, for ``decode`` to explain."""
    legal = np.ones(len(pcs), dtype=np.bool_)
    columns: list[list[int]] = []
    end = OPCODE_BITS
    for placed in LAYOUT[row.mnemonic]:
        field = placed.field
        values = _bits(words, placed.shift, field.bits).astype(np.int64)
        if field.kind is Kind.INT:
            values = (values << (64 - field.bits)) >> (64 - field.bits)
        legal &= (values >= field.minimum) & (values <= field.maximum)
        columns.append(values.tolist())
        end = placed.shift + field.bits
    legal &= _is_zero_from(words, end)
    names = [field.name for field in row.fields]
    for position, pc in enumerate(pcs.tolist()):
        if legal[position]:
            program[pc] = Decoded(row.mnemonic, {n: column[position] for n, column in zip(names, columns, strict=True)})


def _bits(words: U64, shift: int, bits: int) -> U64:
    low, high = words[:, 0], words[:, 1]
    if shift >= 64:
        value = high >> np.uint64(shift - 64)
    elif shift + bits <= 64:
        value = low >> np.uint64(shift)
    else:
        value = (low >> np.uint64(shift)) | (high << np.uint64(64 - shift))
    return np.asarray(value & np.uint64((1 << bits) - 1), dtype=np.uint64)


def _is_zero_from(words: U64, bit: int) -> npt.NDArray[np.bool_]:
    low, high = words[:, 0], words[:, 1]
    if bit >= 64:
        return np.asarray((high >> np.uint64(bit - 64)) == 0) if bit < 128 else np.ones(len(words), dtype=np.bool_)
    return np.asarray(((low >> np.uint64(bit)) | high) == 0)


def _signed(raw: int, bits: int) -> int:
    return raw - (1 << bits) if raw >> (bits - 1) else raw


def _check_range(field: Field, value: int, mnemonic: str, where: str) -> None:
    if field.minimum <= value <= field.maximum:
        return
    hint = f"known values: {', '.join(field.values)}" if field.values else ""
    raise H2LearnError(
        f"{mnemonic}: {field.name} must be {field.minimum} to {field.maximum}, found {value}",
        location=where or None,
        hint=hint,
    )
