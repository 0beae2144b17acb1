"""The object file (``.h2x``): an ELF64 executable with instruction words, initial data, symbols and a JSON note.

``write_object`` is deterministic; ``read_object`` checks everything it reads and raises nothing but H2LearnError.
DRAM addresses are the virtual addresses. ``.rodata`` and ``.data`` lie page-aligned at the end of the file, so that
they can be mapped into memory. See ``docs/levels.md`` for the note.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .atomic_file import replace_file
from .errors import H2LearnError, why
from .isa import ISA_VERSION, MAX_PLANES, WORD_BYTES, isa_hash
from .machine import Machine, from_dict

FORMAT_VERSION = 1
E_MACHINE = 0x4832
DRAM_BASE = 0x1000
PAGE_BYTES = 0x1000
ADDRESS_LIMIT = 1 << 47
DATA_SECTIONS = ("rodata", "data", "bss")
DTYPES = ("f32", "f16", "bits", "slots", "i32", "u8", "scalars")
ROLES = ("input", "label", "parameter", "state", "scalars", "output", "loss", "gradient")
SCALARS_BYTES = 32

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_NHDR = struct.Struct("<III")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X, _PF_W, _PF_R = 1, 2, 4
_PROGBITS, _SYMTAB, _STRTAB, _NOTE, _NOBITS = 1, 2, 3, 7, 8
_WRITE, _ALLOC, _EXECINSTR = 1, 2, 4
_GLOBAL_OBJECT = 0x11
_NOTE_NAME = b"h2learn\0"
_SECTIONS: tuple[tuple[str, int, int, int, int], ...] = (
    (".text", _PROGBITS, _EXECINSTR, WORD_BYTES, 0),
    (".rodata", _PROGBITS, _ALLOC, PAGE_BYTES, 0),
    (".data", _PROGBITS, _ALLOC | _WRITE, PAGE_BYTES, 0),
    (".bss", _NOBITS, _ALLOC | _WRITE, PAGE_BYTES, 0),
    (".symtab", _SYMTAB, 0, 8, _SYM.size),
    (".strtab", _STRTAB, 0, 1, 0),
    (".note.h2learn", _NOTE, 0, 4, 0),
    (".h2learn.loc", _PROGBITS, 0, 1, 0),
    (".shstrtab", _STRTAB, 0, 1, 0),
)
"""Name, type, flags, alignment and entry size of every section; their numbers count from 1."""
_NUMBER = {name: index + 1 for index, (name, *_) in enumerate(_SECTIONS)}
_IN_FILE_ORDER = (".note.h2learn", ".text", ".h2learn.loc", ".symtab", ".strtab", ".shstrtab", ".rodata", ".data")


@dataclass(frozen=True)
class Symbol:
    """A tensor in DRAM: ``address`` and ``size`` in bytes, ``section`` one of ``rodata data bss``."""

    name: str
    address: int
    size: int
    section: str


@dataclass
class ObjectFile:
    """Contents of an ``.h2x`` file.

    ``text``: instruction words. ``rodata``, ``data``: initial bytes of DRAM. ``bases``: DRAM address of each of
    ``rodata data bss``. ``symbols``: by name, in file order. ``note``: the JSON note. ``locations``: ascending
    ``(first pc, last pc, source, loops)`` without overlap.
    """

    text: bytes
    rodata: bytes
    data: bytes
    bss_size: int
    bases: dict[str, int]
    symbols: dict[str, Symbol]
    note: dict[str, Any]
    locations: list[tuple[int, int, str, str]] = field(default_factory=list)

    @property
    def machine(self) -> Machine:
        """The machine the program was compiled for; raises H2LearnError when the note has none."""
        return from_dict(self.note.get("machine", {}), "note: machine")

    def section_bytes(self, section: str) -> int:
        """Return the size of ``rodata``, ``data`` or ``bss`` in bytes."""
        sizes = {"rodata": len(self.rodata), "data": len(self.data), "bss": self.bss_size}
        return sizes[section]

    def save(self, path: str | Path) -> None:
        """Write the file atomically; raises H2LearnError when it is not valid or cannot be written."""
        contents = write_object(self)
        try:
            replace_file(path, contents)
        except OSError as error:
            raise H2LearnError(f"cannot write the object file: {why(error)}", location=str(path)) from error


def new_note(machine: Machine, **fields: Any) -> dict[str, Any]:
    """Return a complete note for ``machine``: versions, hashes, an inference program of batch 1, and ``fields``."""
    return {
        "format": FORMAT_VERSION,
        "isa_version": ISA_VERSION,
        "isa_hash": isa_hash(),
        "machine": machine.to_dict(),
        "machine_hash": machine.hash,
        "precision": "fp32",
        "batch": 1,
        "time_steps": 1,
        "training": False,
        "gradient_scale": 1.0,
        "io": [],
    } | fields


def align_page(address: int) -> int:
    """Return ``address`` rounded up to a page."""
    return -(-address // PAGE_BYTES) * PAGE_BYTES


def tensor_bytes(dtype: str, shape: list[int] | tuple[int, ...]) -> int:
    """Return the fewest bytes a tensor of device ``shape`` takes; gradient slots: at least the bitmaps."""
    elements = math.prod(shape)
    if dtype == "scalars":
        return SCALARS_BYTES
    if dtype in ("f32", "i32", "f16", "u8"):
        return elements * {"f32": 4, "i32": 4, "f16": 2, "u8": 1}[dtype]
    channels = shape[-1] if shape else 1
    rows = elements // channels
    return rows * (-(-channels // 8)) if dtype == "bits" else rows * 8 * (-(-channels // 64))


def write_object(obj: ObjectFile) -> bytes:
    """Return the bytes of the file; equal objects give equal bytes. Raises H2LearnError when ``obj`` is not valid."""
    check_object(obj)
    names = [".shstrtab", *(name for name, *_ in _SECTIONS if name != ".shstrtab")]
    shstrtab, name_offsets = _string_table(names)
    strtab, symbol_offsets = _string_table(list(obj.symbols))
    symtab = bytes(_SYM.size) + b"".join(
        _SYM.pack(symbol_offsets[s.name], _GLOBAL_OBJECT, 0, _NUMBER[f".{s.section}"], s.address, s.size)
        for s in obj.symbols.values()
    )
    contents: dict[str, bytes] = {
        ".note.h2learn": _pack_note(obj.note),
        ".text": obj.text,
        ".h2learn.loc": _json_bytes([list(entry) for entry in obj.locations]),
        ".symtab": symtab,
        ".strtab": strtab,
        ".shstrtab": shstrtab,
        ".rodata": obj.rodata,
        ".data": obj.data,
    }
    loads = [section for section in DATA_SECTIONS if obj.section_bytes(section)]
    head = _EHDR.size + _PHDR.size * (len(loads) + 1)
    out = bytearray(head + _SHDR.size * (len(_SECTIONS) + 1))
    offsets: dict[str, int] = {}
    for name in _IN_FILE_ORDER:
        align = PAGE_BYTES if name in (".rodata", ".data") and contents[name] else 16
        out += bytes(-len(out) % align)
        offsets[name] = len(out)
        out += contents[name]
    offsets[".bss"] = align_page(len(out)) if obj.bss_size else len(out)

    _EHDR.pack_into(
        out, 0, _IDENT, 2, E_MACHINE, 1, 0, _EHDR.size, head, 0,
        _EHDR.size, _PHDR.size, len(loads) + 1, _SHDR.size, len(_SECTIONS) + 1, _NUMBER[".shstrtab"],
    )  # fmt: skip
    at = _EHDR.size
    for header in _program_headers(obj, offsets, len(contents[".note.h2learn"])):
        _PHDR.pack_into(out, at, *header)
        at += _PHDR.size
    at = head + _SHDR.size
    for name, kind, flags, align, entry in _SECTIONS:
        section = name.removeprefix(".")
        in_dram = section in DATA_SECTIONS
        address = obj.bases[section] if in_dram else 0
        size = obj.bss_size if name == ".bss" else len(contents[name])
        link, info = (_NUMBER[".strtab"], 1) if name == ".symtab" else (0, 0)
        _SHDR.pack_into(
            out, at, name_offsets[name], kind, flags, address, offsets[name], size, link, info, align, entry
        )
        at += _SHDR.size
    return bytes(out)


def read_object(source: bytes | str | Path) -> ObjectFile:
    """Return the contents of a file (by path or as bytes); raises H2LearnError when anything in it is not valid."""
    if isinstance(source, bytes):
        return _Reader(source, "<bytes>").read()
    path = Path(source)
    try:
        if not path.is_file():
            raise H2LearnError("there is no such file" if not path.exists() else "not a file", location=str(path))
        contents = path.read_bytes()
    except (OSError, ValueError) as error:
        raise H2LearnError(f"cannot read the object file: {error}", location=str(path)) from error
    return _Reader(contents, str(path)).read()


def check_object(obj: ObjectFile, file: str = "") -> None:
    """Raise H2LearnError unless everything in ``obj`` is consistent; ``file`` is named in the error."""

    def require(condition: bool, message: str, hint: str = "") -> None:
        if not condition:
            raise H2LearnError(message, location=file or None, hint=hint)

    _check_note(obj.note, require)
    machine = _checked_machine(obj.note, file, require)
    require(len(obj.text) % WORD_BYTES == 0, f"the text must be a multiple of {WORD_BYTES} bytes")
    _check_segments(obj, machine.memory_bytes("DRAM"), require)
    for name, symbol in obj.symbols.items():
        require(bool(name) and name == symbol.name and "\0" not in name, f"{name!r} cannot be the name of a symbol")
        require(symbol.section in DATA_SECTIONS, f"symbol {name!r} is in no known section")
        base = obj.bases[symbol.section]
        end = base + obj.section_bytes(symbol.section)
        require(
            base <= symbol.address and symbol.size >= 0 and symbol.address + symbol.size <= end,
            f"symbol {name!r} reaches outside .{symbol.section}",
        )
    for entry in obj.note["io"]:
        _check_io(entry, obj.symbols, require)
    for before, after in pairwise([(-1, -1, "", ""), *obj.locations]):
        require(
            before[1] < after[0] <= after[1] < len(obj.text) // WORD_BYTES,
            "the location table is not ascending within the program",
        )


def parse_json(text: bytes | str) -> Any:
    """Return plain data; raises ValueError for NaN, infinities, integers past 64 bits, wrong UTF-8 or deep nesting."""

    def refuse(word: str) -> object:
        raise ValueError(f"{word} is not JSON")

    def integer(digits: str) -> int:
        if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 64:
            raise ValueError("an integer does not fit 64 bits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, parse_constant=refuse, parse_int=integer, parse_float=real)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


class _Reader:
    """Reads one file; every failure names it."""

    def __init__(self, contents: bytes, file: str) -> None:
        self.contents = contents
        self.file = file

    def fail(self, message: str, hint: str = "") -> H2LearnError:
        return H2LearnError(message, location=self.file, hint=hint)

    def read(self) -> ObjectFile:
        sections, program_headers = self.headers()
        note = self.note(sections[".note.h2learn"])
        obj = ObjectFile(
            text=self.bytes_of(sections[".text"]),
            rodata=self.bytes_of(sections[".rodata"]),
            data=self.bytes_of(sections[".data"]),
            bss_size=sections[".bss"].size,
            bases={name: sections[f".{name}"].address for name in DATA_SECTIONS},
            symbols=self.symbols(sections[".symtab"], sections[".strtab"]),
            note=note,
            locations=self.locations(sections[".h2learn.loc"]),
        )
        check_object(obj, self.file)
        offsets = {name: section.offset for name, section in sections.items()}
        if program_headers != _program_headers(obj, offsets, sections[".note.h2learn"].size):
            raise self.fail("the program headers do not agree with the sections")
        return obj

    def headers(self) -> tuple[dict[str, _Section], list[tuple[int, ...]]]:
        size = len(self.contents)
        if size < _EHDR.size or self.contents[:4] != _IDENT[:4]:
            raise self.fail("not an ELF file", "expected an .h2x file as h2learn compile writes it")
        ident, kind, machine, version, entry, phoff, shoff, flags, *sizes = _EHDR.unpack_from(self.contents)
        ehsize, phentsize, phnum, shentsize, shnum, strndx = sizes
        if ident != _IDENT or machine != E_MACHINE:
            raise self.fail(
                f"not a program for this accelerator (ELF machine {machine:#x}, expected {E_MACHINE:#x}, 64-bit, "
                "little-endian)"
            )
        if (kind, version, entry, flags, ehsize, phentsize, shentsize) != (
            2,
            1,
            0,
            0,
            _EHDR.size,
            _PHDR.size,
            _SHDR.size,
        ):
            raise self.fail("a field of the ELF header has an unexpected value")
        if shnum != len(_SECTIONS) + 1 or strndx != _NUMBER[".shstrtab"]:
            raise self.fail(f"expected {len(_SECTIONS)} sections, found {shnum - 1}")
        if shoff + shnum * _SHDR.size > size or phoff + phnum * _PHDR.size > size:
            raise self.fail("the header tables reach past the end of the file")
        raw = [_SHDR.unpack_from(self.contents, shoff + i * _SHDR.size) for i in range(1, shnum)]
        program_headers = [_PHDR.unpack_from(self.contents, phoff + i * _PHDR.size) for i in range(phnum)]
        sections = [_Section(*values[1:]) for values in raw]
        strings = self.bytes_of(sections[_NUMBER[".shstrtab"] - 1])
        for (name, *expected), section, values in zip(_SECTIONS, sections, raw, strict=True):
            if _string_at(strings, values[0]) != name.encode():
                raise self.fail(f"expected section {name}")
            if [section.kind, section.flags, section.align, section.entry] != expected:
                raise self.fail(f"section {name} has an unexpected type, flag, alignment or entry size")
            if section.kind != _NOBITS and section.offset + section.size > size:
                raise self.fail(f"section {name} reaches past the end of the file")
            if not section.flags & _ALLOC and section.address:
                raise self.fail(f"section {name} has an address")
        return {name: section for (name, *_), section in zip(_SECTIONS, sections, strict=True)}, program_headers

    def bytes_of(self, section: _Section) -> bytes:
        if section.offset + section.size > len(self.contents):
            raise self.fail("a section reaches past the end of the file")
        return self.contents[section.offset : section.offset + section.size]

    def json_of(self, text: bytes, what: str) -> Any:
        try:
            return parse_json(text)
        except ValueError as error:
            raise self.fail(f"{what} is not valid JSON: {error}") from error

    def note(self, section: _Section) -> dict[str, Any]:
        raw = self.bytes_of(section)
        if len(raw) < _NHDR.size + len(_NOTE_NAME):
            raise self.fail("the note is too short")
        name_bytes, size, kind = _NHDR.unpack_from(raw)
        start = _NHDR.size + len(_NOTE_NAME)
        if name_bytes != len(_NOTE_NAME) or kind != 1 or raw[_NHDR.size : start] != _NOTE_NAME:
            raise self.fail("the note is not one of h2learn, type 1")
        if start + size > len(raw) or len(raw) - start - size > 3:
            raise self.fail("the size of the note does not agree with its section")
        note = self.json_of(raw[start : start + size], "the note")
        if not isinstance(note, dict):
            raise self.fail("the note must be a JSON object")
        return note

    def symbols(self, section: _Section, strings_section: _Section) -> dict[str, Symbol]:
        raw, strings = self.bytes_of(section), self.bytes_of(strings_section)
        if len(raw) % _SYM.size or raw[: _SYM.size] != bytes(_SYM.size):
            raise self.fail("the symbol table is not a list of symbols behind an empty one")
        if section.link != _NUMBER[".strtab"] or section.info != 1:
            raise self.fail("the symbol table has an unexpected link")
        symbols: dict[str, Symbol] = {}
        section_names = {_NUMBER[f".{name}"]: name for name in DATA_SECTIONS}
        for at in range(_SYM.size, len(raw), _SYM.size):
            name_at, info, other, shndx, value, size = _SYM.unpack_from(raw, at)
            try:
                name = _string_at(strings, name_at).decode("utf-8")
            except UnicodeDecodeError as error:
                raise self.fail(f"symbol {at // _SYM.size} has a name that is not UTF-8") from error
            if info != _GLOBAL_OBJECT or other or shndx not in section_names:
                raise self.fail(f"symbol {name!r} is not a global object of .rodata, .data or .bss")
            if name in symbols:
                raise self.fail(f"two symbols are named {name!r}")
            symbols[name] = Symbol(name, value, size, section_names[shndx])
        return symbols

    def locations(self, section: _Section) -> list[tuple[int, int, str, str]]:
        table = self.json_of(self.bytes_of(section), "the location table")
        if not isinstance(table, list):
            raise self.fail("the location table must be a JSON array")
        entries: list[tuple[int, int, str, str]] = []
        for entry in table:
            if not isinstance(entry, list) or [type(x) for x in entry] != [int, int, str, str]:
                raise self.fail("an entry of the location table is not [first pc, last pc, source, loops]")
            entries.append((entry[0], entry[1], entry[2], entry[3]))
        return entries


def _program_headers(obj: ObjectFile, offsets: dict[str, int], note_bytes: int) -> list[tuple[int, ...]]:
    headers: list[tuple[int, ...]] = []
    for section in DATA_SECTIONS:
        size = obj.section_bytes(section)
        if size:
            flags = _PF_R if section == "rodata" else _PF_R | _PF_W
            in_file = 0 if section == "bss" else size
            base = obj.bases[section]
            headers.append((_PT_LOAD, flags, offsets[f".{section}"], base, base, in_file, size, PAGE_BYTES))
    headers.sort(key=lambda header: header[3])
    headers.append((_PT_NOTE, _PF_R, offsets[".note.h2learn"], 0, 0, note_bytes, note_bytes, 4))
    return headers


def _pack_note(note: dict[str, Any]) -> bytes:
    text = _json_bytes(note)
    return _NHDR.pack(len(_NOTE_NAME), len(text), 1) + _NOTE_NAME + text + bytes(-len(text) % 4)


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _string_table(strings: list[str]) -> tuple[bytes, dict[str, int]]:
    table, offsets = bytearray(b"\0"), {}
    for text in strings:
        offsets[text] = len(table)
        table += text.encode() + b"\0"
    return bytes(table), offsets


def _string_at(table: bytes, offset: int) -> bytes:
    end = table.find(b"\0", offset)
    return table[offset:end] if end >= 0 else b""


_Require = Callable[..., None]


def _check_note(note: dict[str, Any], require: _Require) -> None:
    require(
        note.get("format") == FORMAT_VERSION, f"expected object format {FORMAT_VERSION}, found {note.get('format')!r}"
    )
    version, digest = note.get("isa_version"), note.get("isa_hash")
    own = f"{ISA_VERSION} ({isa_hash()})"
    require(
        version == ISA_VERSION and digest == isa_hash(),
        f"the program is for instruction set version {version} ({digest}), this is version {own}",
        "compile the model again",
    )
    require(all(key.isidentifier() and key.isascii() for key in note), "the keys of the note must be identifiers")
    kinds: dict[str, type[object]] = {"batch": int, "time_steps": int, "training": bool, "precision": str, "io": list}
    for key, kind in kinds.items():
        require(type(note.get(key)) is kind, f"the note must have {key!r}, of type {kind.__name__}")
    require(note["batch"] > 0 and note["time_steps"] > 0, "the note must have a positive batch and time_steps")
    require(note["precision"] in ("fp32", "fp16"), f"unknown precision {note['precision']!r}")
    scale = note.get("gradient_scale")
    require(
        isinstance(scale, int | float) and not isinstance(scale, bool) and scale > 0,
        "the note must have a positive gradient_scale",
    )


def _checked_machine(note: dict[str, Any], file: str, require: _Require) -> Machine:
    description = note.get("machine")
    require(isinstance(description, dict), "the note must have a machine description")
    machine = from_dict(description or {}, f"{file}: machine" if file else "machine")
    require(
        note.get("machine_hash") == machine.hash,
        f"the hash of machine {machine.name!r} is {machine.hash}, the note says {note.get('machine_hash')!r}",
    )
    return machine


def _check_segments(obj: ObjectFile, dram_bytes: int, require: _Require) -> None:
    require(set(obj.bases) == set(DATA_SECTIONS), "an address is needed for each of rodata, data and bss")
    limit = min(dram_bytes, ADDRESS_LIMIT)
    ranges: list[tuple[int, int, str]] = []
    for section in DATA_SECTIONS:
        base, size = obj.bases[section], obj.section_bytes(section)
        require(
            base % PAGE_BYTES == 0 and base >= DRAM_BASE, f"the address of .{section} must be a page from 0x1000 on"
        )
        require(
            size >= 0 and base + size <= limit,
            f".{section} ends at {base + size:#x}, past the {limit:#x} bytes of DRAM",
        )
        if size:
            ranges.append((base, base + size, section))
    for (_, end, first), (start, _, second) in pairwise(sorted(ranges)):
        require(end <= start, f".{first} and .{second} overlap in DRAM")


def _check_io(entry: object, symbols: dict[str, Symbol], require: _Require) -> None:
    require(isinstance(entry, dict), "an entry of the io table must be a JSON object")
    assert isinstance(entry, dict)
    for key in ("name", "role", "symbol", "dtype"):
        require(isinstance(entry.get(key), str), f"an entry of the io table must have the string {key!r}")
    name = entry["name"]
    for key in ("shape", "view", "perm"):
        value = entry.get(key)
        require(
            isinstance(value, list) and all(type(n) is int for n in value),
            f"io {name!r}: {key} must be a list of integers",
        )
    require(entry["role"] in ROLES, f"io {name!r}: unknown role {entry['role']!r}")
    require(entry["dtype"] in DTYPES, f"io {name!r}: unknown dtype {entry['dtype']!r}")
    require(len(entry["shape"]) <= 8 and all(n > 0 for n in entry["shape"]), f"io {name!r}: the shape must be positive")
    require(entry["symbol"] in symbols, f"io {name!r}: there is no symbol {entry['symbol']!r}")
    require(
        tensor_bytes(entry["dtype"], entry["shape"]) <= symbols[entry["symbol"]].size,
        f"io {name!r} does not fit its symbol {entry['symbol']!r}",
    )
    perm = entry["perm"]
    require(not perm or sorted(perm) == list(range(len(perm))), f"io {name!r}: perm is not a permutation")
    view = entry["view"]
    require(
        all(n == -1 or n > 0 for n in view)
        and view.count(-1) <= 1
        and (not perm or not view or len(view) == len(perm)),
        f"io {name!r}: the view is not a shape",
    )
    bits = entry.get("bits", 0)
    require(type(bits) is int and 0 <= bits <= MAX_PLANES, f"io {name!r}: bits must be 0 to {MAX_PLANES}")
    shadow = entry.get("shadow")
    require(
        shadow is None or (isinstance(shadow, str) and shadow in symbols), f"io {name!r}: there is no symbol {shadow!r}"
    )
    require(
        shadow is None or tensor_bytes("f16", entry["shape"]) <= symbols[shadow].size,
        f"io {name!r} does not fit its storage copy {shadow!r}",
    )
    plane = entry.get("shadow_plane")
    require(
        plane is None
        or (shadow is not None and type(plane) is int and plane > 0 and not (entry["shape"] or [1])[-1] % plane),
        f"io {name!r}: shadow_plane must divide the channels of a parameter with a shadow",
    )
