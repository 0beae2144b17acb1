"""Assembly text to object file and back, derived from the instruction table; ``assemble(disassemble(x))`` equals ``x``.

One statement per line, comments from ``;`` to the end of the line. Instructions are written ``mnemonic operands``; an
operand is ``field=value`` or, for ``cfg addr loop signal wait nop``, a bare value::

    addr a3, S, 0x40                 address register: memory, base
    cfg a3.stride1, 128              field of a descriptor (a: address registers, c: convolutions, ...)
    cfg n0.width, 0.5                binary32, or f32(0x7fc00001) by its bits
    loop 4
      fe.run acc=a3, s=a4, lut=a5, desc=c0, init=0x3, shape=16x128
    endl

The block of a ``fork`` stands in braces; its length is not written::

    fork 1 {
      halt
    }

Directives: ``.machine NAME`` (a note for that machine), ``.note KEY JSON``, ``.io JSON``, ``.rodata ADDRESS`` and
``.data ADDRESS`` followed by ``.base64 TEXT``, ``.hex DIGITS`` or ``.zero BYTES``, ``.bss ADDRESS, BYTES``,
``.symbol "NAME", SECTION, ADDRESS, BYTES``, ``.text``, ``.loc "SOURCE", "LOOPS"`` (from here on) and ``.endloc``.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .encoder import Decoded, configured, decode_program, encode
from .errors import H2LearnError, Location
from .isa import BY_MNEMONIC, DESCRIPTORS, WORD_BYTES, Field, Instruction, Kind
from .machine import load_machine
from .object_file import DATA_SECTIONS, DRAM_BASE, ObjectFile, Symbol, check_object, new_note, parse_json

POSITIONAL = frozenset({"cfg", "addr", "setup", "loop", "fork", "signal", "wait", "nop"})
"""Instructions whose operands are printed as bare values."""

_BY_PREFIX = {descriptor.prefix: descriptor for descriptor in DESCRIPTORS}
_PREFIX = {descriptor.name: descriptor.prefix for descriptor in DESCRIPTORS}
_HEXADECIMAL = frozenset({"init", "base", "address"})
_BYTES_PER_LINE = 96
_MAX_DATA_BYTES = 1 << 32
_STATEMENT = re.compile(r"\s*(?P<head>\.?[A-Za-z_][\w.]*)?")
_OPERAND = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^",;]*[^",;\s])\s*(,|(?=;)|$)')
_REGISTER = re.compile(r"([a-z])(\d{1,3})")


def assemble(text: str, file: str = "<asm>") -> ObjectFile:
    """Return the object file of an assembly text; raises H2LearnError with file, line, column and the line."""
    return _Assembler(text, file).run()


def disassemble(obj: ObjectFile) -> str:
    """Return assembly text that carries everything in ``obj``; raises H2LearnError when the program is not legal."""
    lines = ["; h2learn assembly"]
    for key in sorted(obj.note):
        if key != "io":
            lines.append(f".note {key} {_json(obj.note[key])}")
    lines += [f".io {_json(entry)}" for entry in obj.note["io"]]
    for section, contents in (("rodata", obj.rodata), ("data", obj.data)):
        lines += [f".{section} {obj.bases[section]:#x}", *_data_lines(contents)]
    lines.append(f".bss {obj.bases['bss']:#x}, {obj.bss_size:#x}")
    for symbol in obj.symbols.values():
        lines.append(f".symbol {_json(symbol.name)}, {symbol.section}, {symbol.address:#x}, {symbol.size}")
    return "\n".join([*lines, ".text", *_code_lines(obj, directives=True)]) + "\n"


def objdump(obj: ObjectFile) -> str:
    """Return a summary for people: header, sections, symbols, io table, then the code with its sources."""
    note, machine = obj.note, obj.machine
    kind = "training step" if note["training"] else "inference"
    lines = [
        f"program     {len(obj.text) // WORD_BYTES} instructions, {kind}, "
        f"batch {note['batch']}, {note['time_steps']} time steps, {note['precision']}",
        f"machine     {machine.name} ({note['machine_hash']}), {machine.node_nm} nm, {machine.clock_hz / 1e9:g} GHz",
        f"isa         version {note['isa_version']} ({note['isa_hash']})",
        "",
        "section         address         bytes",
    ]
    for section in DATA_SECTIONS:
        lines.append(f"{'.' + section:<10} {obj.bases[section]:>#12x} {obj.section_bytes(section):>13}")
    lines += ["", "symbol                                address         bytes  section"]
    for symbol in obj.symbols.values():
        lines.append(f"{symbol.name:<32} {symbol.address:>#12x} {symbol.size:>13}  .{symbol.section}")
    lines += ["", "io          name                             dtype    shape                symbol"]
    for entry in note["io"]:
        shape = "x".join(map(str, entry["shape"])) or "scalar"
        lines.append(f"{entry['role']:<11} {entry['name']:<32} {entry['dtype']:<8} {shape:<20} {entry['symbol']}")
        if entry.get("shadow"):
            planes = f", in planes of {entry['shadow_plane']} channels" if entry.get("shadow_plane") else ""
            lines.append(f"{'':<11} {'  storage copy' + planes:<62} {entry['shadow']}")
    return "\n".join([*lines, "", "code", *_code_lines(obj, directives=False)]) + "\n"


def format_instruction(mnemonic: str, fields: Mapping[str, int]) -> str:
    """Return the text of one legal instruction."""
    return " ".join([mnemonic, ", ".join(format_operands(mnemonic, fields))]).rstrip()


def format_operands(mnemonic: str, fields: Mapping[str, int]) -> list[str]:
    """Return the operands of one legal instruction as text."""
    if mnemonic == "cfg":
        target = configured(fields)
        prefix = DESCRIPTORS[fields["kind"]].prefix
        return [f"{prefix}{fields['index']}.{target.name}", _format_value(target, fields["value"])]
    row = BY_MNEMONIC[mnemonic]
    written = _written(row)
    texts = [_format_value(item, fields[item.name]) for item in written]
    if mnemonic in POSITIONAL:
        return texts
    return [f"{item.name}={text}" for item, text in zip(written, texts, strict=True)]


def operand_count(mnemonic: str) -> int:
    """Return how many operands ``format_operands`` gives."""
    return 2 if mnemonic == "cfg" else len(_written(BY_MNEMONIC[mnemonic]))


def _written(row: Instruction) -> tuple[Field, ...]:
    """Return the fields that text names: all but the length of a block."""
    return row.fields[:-1] if row.block else row.fields


def parse_operands(mnemonic: str, operands: Sequence[str]) -> dict[str, int]:
    """Return the fields of one instruction from its operands; raises OperandError that points at the wrong one.

    The length of a block is left out, for whoever knows the block to add.
    """
    if mnemonic == "cfg":
        return _parse_cfg(operands)
    row = BY_MNEMONIC[mnemonic]
    written = _written(row)
    found: dict[str, int] = {}
    by_name = {item.name: item for item in written}
    for number, text in enumerate(operands):
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            if mnemonic not in POSITIONAL:
                raise OperandError(f"expected field=value, found {text!r}", number)
            if number >= len(written):
                raise OperandError(f"{mnemonic} has {len(written)} operands, found more", number)
            name, value = written[number].name, text
        if name not in by_name:
            raise OperandError(f"{mnemonic} has no operand {name!r}", number, f"operands: {', '.join(by_name)}")
        if name in found:
            raise OperandError(f"{mnemonic}: operand {name!r} is given twice", number)
        found[name] = _in_operand(number, _parse_value, by_name[name], value.strip())
    missing = [item.name for item in written if item.name not in found]
    if missing:
        raise OperandError(f"{mnemonic}: operand {missing[0]!r} is missing", None, f"operands: {', '.join(by_name)}")
    return {item.name: found[item.name] for item in written}


class OperandError(H2LearnError):
    """An operand that cannot be read; ``number`` counts operands from 0, None is the whole instruction."""

    def __init__(self, message: str, number: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.number = number


@dataclass
class _Operand:
    text: str
    column: int


@dataclass
class _Block:
    """An open block: the word before it, whose last field it decides, and where it was opened."""

    mnemonic: str
    fields: dict[str, int]
    pc: int
    line_number: int
    line: str


@dataclass
class _Assembler:
    """Reads statements line by line into the parts of an object file."""

    text: str
    file: str
    note: dict[str, Any] = field(default_factory=dict)
    io: list[Any] = field(default_factory=list)
    contents: dict[str, bytearray] = field(default_factory=lambda: {"rodata": bytearray(), "data": bytearray()})
    bases: dict[str, int] = field(default_factory=dict)
    bss_size: int = 0
    symbols: dict[str, Symbol] = field(default_factory=dict)
    words: list[bytes] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)
    locations: list[tuple[int, int, str, str]] = field(default_factory=list)
    section: str = "text"
    source: tuple[str, str] | None = None
    source_start: int = 0
    machine: str = "h2l-v0"
    line_number: int = 0
    line: str = ""

    def run(self) -> ObjectFile:
        for number, line in enumerate(self.text.split("\n"), start=1):
            self.line_number, self.line = number, line.rstrip()
            self.statement()
        if self.blocks:
            self.line_number, self.line = self.blocks[-1].line_number, self.blocks[-1].line
            raise self.fail("the block is never closed", len(self.line))
        self.close_location()
        note = self.note if "machine" in self.note else new_note(load_machine(self.machine)) | self.note
        note["io"] = self.io
        obj = ObjectFile(
            text=b"".join(self.words),
            rodata=bytes(self.contents["rodata"]),
            data=bytes(self.contents["data"]),
            bss_size=self.bss_size,
            bases={name: self.bases.get(name, DRAM_BASE) for name in DATA_SECTIONS},
            symbols=self.symbols,
            note=note,
            locations=self.locations,
        )
        check_object(obj, self.file)
        return obj

    def fail(self, message: str, column: int, hint: str = "") -> H2LearnError:
        excerpt = f"  {self.line}\n  {' ' * (column - 1)}^"
        return H2LearnError(message, location=Location(self.file, self.line_number, column), hint=hint, excerpt=excerpt)

    def statement(self) -> None:
        match = _STATEMENT.match(self.line)
        assert match is not None
        head, start, rest = match["head"], match.start("head") + 1, match.end()
        if head is None and self.line[rest:].partition(";")[0].strip() == "}":
            self.close_block(rest + 1)
            return
        if head is None:
            if self.line[rest:].strip() and not self.line[rest:].lstrip().startswith(";"):
                raise self.fail("expected an instruction or a directive", rest + 1)
            return
        if head in (".note", ".io"):
            self.note_entry(head, rest)
        elif head in (".base64", ".hex"):
            self.data_line(head, rest)
        elif head.startswith("."):
            self.directive(head, start, self.operands(rest))
        else:
            self.instruction(head, start, self.operands(rest))

    def operands(self, position: int) -> list[_Operand]:
        found: list[_Operand] = []
        rest = self.line[position:].lstrip()
        if not rest or rest.startswith(";"):
            return found
        while True:
            match = _OPERAND.match(self.line, position)
            if match is None:
                raise self.fail("expected an operand", min(position, len(self.line)) + 1)
            found.append(_Operand(match[1], match.start(1) + 1))
            position = match.end()
            if match[2] != ",":
                return found

    def instruction(self, mnemonic: str, column: int, operands: list[_Operand]) -> None:
        if mnemonic not in BY_MNEMONIC:
            raise self.fail(f"there is no instruction {mnemonic!r}", column)
        opens = bool(BY_MNEMONIC[mnemonic].block)
        if opens:
            operands = self.opening(mnemonic, column, operands)
        try:
            fields = parse_operands(mnemonic, [operand.text for operand in operands])
            if opens:
                self.blocks.append(_Block(mnemonic, fields, len(self.words), self.line_number, self.line))
            self.words.append(b"" if opens else encode(mnemonic, fields))
        except OperandError as error:
            at = column if error.number is None else operands[error.number].column
            raise self.fail(error.message, at, error.hint) from error
        except H2LearnError as error:
            raise self.fail(error.message, column, error.hint) from error

    def opening(self, mnemonic: str, column: int, operands: list[_Operand]) -> list[_Operand]:
        """Return the operands without the brace at their end."""
        if not operands or not operands[-1].text.endswith("{"):
            raise self.fail(f"{mnemonic} takes a block in braces", column, f"write {mnemonic} ... {{")
        last = operands[-1]
        rest = last.text[:-1].rstrip()
        return operands[:-1] + ([_Operand(rest, last.column)] if rest else [])

    def close_block(self, column: int) -> None:
        if not self.blocks:
            raise self.fail("there is no open block to close", column)
        block = self.blocks.pop()
        length = len(self.words) - block.pc - 1
        try:
            self.words[block.pc] = encode(block.mnemonic, block.fields | {BY_MNEMONIC[block.mnemonic].block: length})
        except H2LearnError as error:
            raise self.fail(error.message, column, error.hint) from error

    def note_entry(self, head: str, position: int) -> None:
        rest = self.line[position:].strip()
        key = ""
        if head == ".note":
            key, _, rest = rest.partition(" ")
        column = len(self.line) - len(rest) + 1
        if head == ".note" and (not key or key == "io"):
            raise self.fail("expected .note KEY JSON; entries of the io table are written with .io", column)
        try:
            value = parse_json(rest)
        except ValueError as error:
            raise self.fail(f"not valid JSON: {error}", column) from error
        if head == ".io":
            self.io.append(value)
        else:
            self.note[key] = value

    def data_line(self, head: str, position: int) -> None:
        rest = self.line[position:].partition(";")[0].strip()
        if self.section not in self.contents:
            raise self.fail(f"{head} belongs below .rodata or .data", position + 1)
        try:
            chunk = base64.b64decode(rest, validate=True) if head == ".base64" else bytes.fromhex(rest)
        except (binascii.Error, ValueError) as error:
            raise self.fail(f"not valid {head[1:]}: {error}", position + 2) from error
        self.contents[self.section] += chunk

    def directive(self, head: str, column: int, operands: list[_Operand]) -> None:
        if head in (".rodata", ".data"):
            self.section = head[1:]
            self.bases[self.section] = self.integer(self.only(head, operands, 1, column)[0])
        elif head == ".zero":
            if self.section not in self.contents:
                raise self.fail(".zero belongs below .rodata or .data", column)
            self.contents[self.section] += bytes(self.size(self.only(head, operands, 1, column)[0]))
        elif head == ".bss":
            address, size = self.only(head, operands, 2, column)
            self.bases["bss"], self.bss_size = self.integer(address), self.integer(size)
        elif head == ".symbol":
            self.symbol(self.only(head, operands, 4, column))
        elif head == ".machine":
            self.machine = self.only(head, operands, 1, column)[0].text
            try:
                load_machine(self.machine)
            except H2LearnError as error:
                raise self.fail(error.message, operands[0].column, error.hint) from error
        elif head == ".text":
            self.section = "text"
            self.only(head, operands, 0, column)
        elif head == ".loc":
            source, loops = self.only(head, operands, 2, column)
            self.close_location()
            self.source, self.source_start = (self.string(source), self.string(loops)), len(self.words)
        elif head == ".endloc":
            self.only(head, operands, 0, column)
            self.close_location()
        else:
            raise self.fail(f"there is no directive {head!r}", column)

    def symbol(self, operands: list[_Operand]) -> None:
        name, section = self.string(operands[0]), operands[1].text
        if section not in DATA_SECTIONS:
            raise self.fail(f"expected a section ({', '.join(DATA_SECTIONS)}), found {section!r}", operands[1].column)
        if name in self.symbols:
            raise self.fail(f"symbol {name!r} is given twice", operands[0].column)
        self.symbols[name] = Symbol(name, self.integer(operands[2]), self.integer(operands[3]), section)

    def close_location(self) -> None:
        if self.source is not None and self.source_start < len(self.words):
            self.locations.append((self.source_start, len(self.words) - 1, *self.source))
        self.source = None

    def only(self, head: str, operands: list[_Operand], count: int, column: int) -> list[_Operand]:
        if len(operands) != count:
            raise self.fail(f"{head} takes {count} operands, found {len(operands)}", column)
        return operands

    def integer(self, operand: _Operand) -> int:
        try:
            value = _parse_integer(operand.text)
        except H2LearnError as error:
            raise self.fail(error.message, operand.column) from error
        if not 0 <= value < 1 << 63:
            raise self.fail(f"expected an address or a size, found {value}", operand.column)
        return value

    def size(self, operand: _Operand) -> int:
        value = self.integer(operand)
        if value + sum(map(len, self.contents.values())) > _MAX_DATA_BYTES:
            raise self.fail(f"more than {_MAX_DATA_BYTES} bytes of initial data", operand.column)
        return value

    def string(self, operand: _Operand) -> str:
        try:
            value = parse_json(operand.text)
        except ValueError as error:
            raise self.fail(f"expected a string in quotes, found {operand.text}", operand.column) from error
        if not isinstance(value, str):
            raise self.fail(f"expected a string in quotes, found {operand.text}", operand.column)
        return value


def _parse_cfg(operands: Sequence[str]) -> dict[str, int]:
    if len(operands) != 2:
        raise OperandError(f"cfg takes a descriptor field and a value, found {len(operands)} operands", None)
    register, _, name = operands[0].partition(".")
    match = _REGISTER.fullmatch(register)
    descriptor = _BY_PREFIX.get(match[1]) if match else None
    if match is None or descriptor is None:
        raise OperandError(f"expected a descriptor field such as c0.imgs, found {operands[0]!r}", 0)
    try:
        number = descriptor.field_index(name)
    except KeyError:
        known = ", ".join(item.name for item in descriptor.fields)
        raise OperandError(f"{descriptor.name} descriptors have no field {name!r}", 0, f"fields: {known}") from None
    value = _in_operand(1, _parse_value, descriptor.fields[number], operands[1])
    fields = {"kind": DESCRIPTORS.index(descriptor), "index": int(match[2]), "field": number, "value": value}
    _in_operand(0, configured, fields)
    return fields


def _in_operand(number: int, function: Callable[..., Any], *arguments: object) -> Any:
    try:
        return function(*arguments)
    except H2LearnError as error:
        raise OperandError(error.message, number, error.hint) from error


def _parse_value(target: Field, text: str) -> int:
    if target.kind is Kind.ENUM:
        if text not in target.values:
            raise H2LearnError(
                f"{target.name}: unknown value {text!r}", hint=f"known values: {', '.join(target.values)}"
            )
        return target.values.index(text)
    if target.kind is Kind.F32:
        return _parse_f32(text)
    if target.kind in (Kind.AREG, Kind.DESC):
        prefix = _PREFIX["areg" if target.kind is Kind.AREG else target.of]
        match = _REGISTER.fullmatch(text)
        if match is None or match[1] != prefix:
            raise H2LearnError(f"{target.name}: expected a register such as {prefix}3, found {text!r}")
        value = int(match[2])
    else:
        value = _parse_integer(text)
    if not target.minimum <= value <= target.maximum:
        raise H2LearnError(f"{target.name} must be {target.minimum} to {target.maximum}, found {value}")
    return value


def _parse_integer(text: str) -> int:
    try:
        if len(text) > 80:
            raise ValueError
        return int(text, 0)
    except ValueError:
        raise H2LearnError(f"expected an integer, found {text!r}") from None


def _parse_f32(text: str) -> int:
    if text.startswith("f32(") and text.endswith(")"):
        bits = _parse_integer(text[4:-1])
        if not 0 <= bits < 1 << 32:
            raise H2LearnError(f"expected 32 bits, found {text!r}")
        return bits
    try:
        wide = float(text)
    except ValueError:
        raise H2LearnError(f"expected a number or f32(bits), found {text!r}") from None
    with np.errstate(over="ignore"):
        value = np.float32(wide)
    if not math.isfinite(value):
        raise H2LearnError(f"{text} is not a finite binary32 number", hint="write f32(0x7f800000) for infinity")
    return int(value.view(np.uint32))


def _format_value(target: Field, value: int) -> str:
    if target.kind is Kind.ENUM:
        return target.values[value]
    if target.kind is Kind.AREG:
        return f"a{value}"
    if target.kind is Kind.DESC:
        return f"{_PREFIX[target.of]}{value}"
    if target.kind is Kind.F32:
        return _format_f32(value)
    return hex(value) if target.name in _HEXADECIMAL and abs(value) > 9 else str(value)


def _format_f32(bits: int) -> str:
    value = np.uint32(bits).view(np.float32)
    text = str(value)
    return text if math.isfinite(value) and _parse_f32(text) == bits else f"f32({bits:#010x})"


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _data_lines(contents: bytes) -> list[str]:
    lines: list[str] = []
    zeros = 0
    for start in range(0, len(contents), _BYTES_PER_LINE):
        chunk = contents[start : start + _BYTES_PER_LINE]
        if not any(chunk):
            zeros += len(chunk)
            continue
        if zeros:
            lines.append(f"  .zero {zeros}")
            zeros = 0
        lines.append(f"  .base64 {binascii.b2a_base64(chunk, newline=False).decode()}")
    return [*lines, f"  .zero {zeros}"] if zeros else lines


def _code_lines(obj: ObjectFile, *, directives: bool) -> list[str]:
    """Return the instructions, indented by loops and blocks, with their pc; locations as directives or as comments.

    Raises H2LearnError when a block ends behind the program or behind the block around it.
    """
    starts = {first: (source, loops) for first, _, source, loops in obj.locations}
    ends = {last + 1 for _, last, _, _ in obj.locations} - set(starts)
    lines: list[str] = []
    depth = 0
    program = decode_program(obj.text)
    closing: list[tuple[int, int]] = []
    for pc, item in enumerate(program):
        if pc in starts:
            source, loops = starts[pc]
            if directives:
                lines.append(f".loc {_json(source)}, {_json(loops)}")
            else:
                lines.append(f"; {_one_line(source)}" + (f" [{_one_line(loops)}]" if loops else ""))
        elif pc in ends and directives:
            lines.append(".endloc")
        depth = max(0, depth - (item.mnemonic == "endl"))
        block = BY_MNEMONIC[item.mnemonic].block
        text = "  " * (depth + 1) + format_instruction(item.mnemonic, item.fields) + (" {" if block else "")
        lines.append(f"{text:<72} ; {pc}" if directives else f"{pc:>6}{text}")
        lines += [f";{' ' * (2 * depth + 3)}{word}" for word in _table(obj, item)]
        depth += item.mnemonic == "loop"
        if block:
            end = pc + item.fields[block]
            if end >= (closing[-1][0] + 1 if closing else len(program)):
                raise H2LearnError(f"{item.mnemonic}: its block ends behind what it stands in", location=f"pc {pc}")
            closing.append((end, depth))
            depth += 1
        while closing and closing[-1][0] == pc:
            depth = closing.pop()[1]
            lines.append("  " * (depth + 1) + "}" if directives else f"{'':6}{'  ' * (depth + 1)}}}")
    return lines


def _table(obj: ObjectFile, item: Decoded) -> list[str]:
    """Return the words that a ``setup`` executes, as text; nothing for other instructions and illegal tables."""
    if item.mnemonic != "setup":
        return []
    start = item.fields["address"] - obj.bases["rodata"]
    raw = obj.rodata[start : start + item.fields["count"] * WORD_BYTES] if start >= 0 else b""
    try:
        return [format_instruction(word.mnemonic, word.fields) for word in decode_program(raw)]
    except H2LearnError:
        return []


def _one_line(text: str) -> str:
    return " ".join(text.split())
