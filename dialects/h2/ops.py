"""The ``h2`` dialect: one op class per row of the instruction table, generated from it.

A program is a ``builtin.module`` with one ``func.func @main`` without arguments, whose single block holds the list of
instructions and ends in ``h2.halt``, as does the block of an ``h2.fork``. Module attributes beside those of
``dialects/common.py``: ``h2.symbols`` (every tensor in DRAM, see :class:`TensorSymbol`) and ``h2.io`` (the symbol of
each entry of the io table, in its order).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from xdsl.dialects import builtin, func
from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Block, Data, Dialect, Operation, Region
from xdsl.irdl import IRDLOperation, irdl_attr_definition, irdl_op_definition, prop_def, region_def, traits_def
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.traits import IsTerminator
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.mlir_lexer import MLIRTokenKind

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.assembler import OperandError, format_operands, operand_count, parse_operands
from h2learn.backends.h2learn.encoder import check_fields
from h2learn.backends.h2learn.errors import H2LearnError

from ..common import source_of

SYMBOLS_ATTRIBUTE = "h2.symbols"
IO_SYMBOLS_ATTRIBUTE = "h2.io"
LOOPS_ATTRIBUTE = "loops"
WORDS_ATTRIBUTE = "words"
_NEVER_INIT = 8
_PREFIX = "h2."


@irdl_attr_definition
class FieldsAttr(Data[tuple[int, ...]]):
    """The values of all fields of an instruction, in the order of its row in the table."""

    name = "h2.fields"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[int, ...]:
        """Parse ``<1, -2>``."""
        return tuple(parser.parse_comma_separated_list(parser.Delimiter.ANGLE, parser.parse_integer))

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<1, -2>``."""
        printer.print_string(f"<{', '.join(map(str, self.data))}>")


class InstructionOp(IRDLOperation):
    """An instruction. Printed as in assembly text: ``h2.signal FE, 5, 1``."""

    fields = prop_def(FieldsAttr)

    def __init__(self, values: Sequence[int], location: LocationAttr) -> None:
        super().__init__(properties={"fields": FieldsAttr(tuple(values))})
        self.location = location

    @property
    def mnemonic(self) -> str:
        """The mnemonic: the name without the dialect."""
        return self.name.removeprefix(_PREFIX)

    @property
    def row(self) -> isa.Instruction:
        """The row of the instruction table."""
        return isa.BY_MNEMONIC[self.mnemonic]

    @property
    def values(self) -> tuple[int, ...]:
        """The values of all fields in row order."""
        return self.fields.data

    @property
    def inner(self) -> list[InstructionOp]:
        """The instructions of its block, which follow it in the program; most instructions have none."""
        return []

    def field(self, name: str) -> int:
        """Return the value of field ``name``; raises KeyError when the row has none."""
        return self.named_fields()[name]

    def named_fields(self) -> dict[str, int]:
        """Return field name -> value in row order."""
        return {field.name: value for field, value in zip(self.row.fields, self.values, strict=False)}

    def verify_(self) -> None:
        """Check number and range of the fields."""
        if len(self.values) != len(self.row.fields):
            raise VerifyException(f"{self.name} expects {len(self.row.fields)} fields, found {len(self.values)}")
        try:
            check_fields(self.mnemonic, self.named_fields())
        except H2LearnError as error:
            raise VerifyException(error.message) from error

    def print(self, printer: Printer) -> None:
        """Print the operands as in assembly text."""
        try:
            self.verify_()
            operands = ", ".join(format_operands(self.mnemonic, self.named_fields()))
        except VerifyException:
            operands = f"illegal{self.values}"
        printer.print_string(f" {operands}".rstrip())
        printer.print_op_attributes(self.attributes)

    @classmethod
    def parse(cls, parser: Parser) -> InstructionOp:
        """Parse the operands as in assembly text."""
        op = cls(cls.parse_fields(parser), builtin.UnknownLoc())
        op.attributes.update(parser.parse_optional_attr_dict())
        return op

    @classmethod
    def parse_fields(cls, parser: Parser) -> tuple[int, ...]:
        """Parse the operands and return the fields that they give."""
        mnemonic = cls.name.removeprefix(_PREFIX)
        texts: list[str] = []
        starts = [parser.pos]
        for number in range(operand_count(mnemonic)):
            if number:
                parser.parse_punctuation(",")
            starts.append(parser.pos)
            texts.append(_operand_text(parser))
        end = parser.pos
        try:
            fields = parse_operands(mnemonic, texts)
        except OperandError as error:
            start = starts[0 if error.number is None else error.number + 1]
            parser.raise_error(error.message, start, end)
        return tuple(fields.values())


class BlockOp(InstructionOp):
    """An instruction with a block, whose length is its last field. Printed with braces: ``h2.fork 1 { ... }``."""

    body = region_def("single_block")

    def __init__(self, values: Sequence[int], location: LocationAttr, body: Region) -> None:
        IRDLOperation.__init__(self, properties={"fields": FieldsAttr(tuple(values))}, regions=[body])
        self.location = location

    @property
    def values(self) -> tuple[int, ...]:
        """The values of all fields in row order."""
        return (*self.fields.data, len(self.inner))

    @property
    def inner(self) -> list[InstructionOp]:
        """The instructions of the block."""
        return list(_instructions(self.body.block))

    def print(self, printer: Printer) -> None:
        """Print the operands as in assembly text, then the block."""
        written = dict(zip((item.name for item in self.row.fields), self.fields.data, strict=False))
        printer.print_string(f" {', '.join(format_operands(self.mnemonic, written))}")
        printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" ")
        printer.print_region(self.body)

    @classmethod
    def parse(cls, parser: Parser) -> BlockOp:
        """Parse the operands as in assembly text, then the block."""
        values = cls.parse_fields(parser)
        attributes = parser.parse_optional_attr_dict_with_keyword()
        op = cls(values, builtin.UnknownLoc(), parser.parse_region())
        op.attributes.update({} if attributes is None else attributes.data)
        return op


def _operand_text(parser: Parser) -> str:
    """Consume the tokens of one operand, which holds neither spaces nor commas, and return its text."""
    start = end = parser.pos
    while parser.pos == end:
        token = parser._current_token
        if token.kind in (MLIRTokenKind.COMMA, MLIRTokenKind.EOF):
            break
        parser._consume_token()
        end = token.span.end
    return parser.lexer.input.content[start:end]


def _define(row: isa.Instruction) -> type[InstructionOp]:
    name = "".join(part.capitalize() for part in row.mnemonic.split(".")) + "Op"
    body: dict[str, object] = {
        "__doc__": f"{row.doc} Action: ``{row.action}``.",
        "__module__": __name__,
        "name": f"{_PREFIX}{row.mnemonic}",
    }
    if row.mnemonic == "halt":
        body["traits"] = traits_def(IsTerminator())
        body["verify_"] = _verify_halt
    base = BlockOp if row.block else InstructionOp
    return cast(type[InstructionOp], irdl_op_definition(type(name, (base,), body)))


def _verify_halt(self: InstructionOp) -> None:
    InstructionOp.verify_(self)
    block = self.parent_block()
    if block is not None and not isinstance(block.parent_op(), BlockOp):
        verify_block(block)


OPS: dict[str, type[InstructionOp]] = {row.mnemonic: _define(row) for row in isa.INSTRUCTIONS}
"""Op class of each mnemonic."""

H2 = Dialect("h2", list(OPS.values()), [FieldsAttr])


def build(mnemonic: str, location: LocationAttr, /, **fields: int | str) -> InstructionOp:
    """Return the op of an instruction without a block. Every field must be given, ENUM fields also by name.

    Raises KeyError for an unknown mnemonic and ValueError for a missing, unknown or misspelt field; ranges are checked
    by the verifier.
    """
    row = isa.BY_MNEMONIC[mnemonic]
    if len(fields) != len(row.fields):
        raise ValueError(f"{mnemonic} has the fields {[field.name for field in row.fields]}, found {list(fields)}")
    try:
        values = tuple(_number(field, fields[field.name]) for field in row.fields)
    except KeyError as error:
        raise ValueError(f"{mnemonic}: field {error} is missing") from None
    return OPS[mnemonic](values, location)


def configuration(descriptor: str, index: int, field: str, value: int | float | str) -> dict[str, int]:
    """Return the fields of the ``cfg`` that sets one descriptor field: floats for F32 fields, names for ENUM fields."""
    described = isa.DESCRIPTOR_BY_NAME[descriptor]
    number = described.field_index(field)
    target = described.fields[number]
    if target.kind is isa.Kind.F32:
        raw = int(np.float32(value).view(np.uint32))
    else:
        raw = _number(target, value if isinstance(value, str) else int(value))
    return {"kind": isa.DESCRIPTORS.index(described), "index": index, "field": number, "value": raw}


def configure(
    descriptor: str, index: int, field: str, value: int | float | str, location: LocationAttr
) -> InstructionOp:
    """Return the ``h2.cfg`` that sets one descriptor field: floats for F32 fields, names or numbers for ENUM fields."""
    return OPS["cfg"](tuple(configuration(descriptor, index, field, value).values()), location)


def fork(stream: int, ops: Sequence[Operation], location: LocationAttr) -> InstructionOp:
    """Return the ``h2.fork`` that starts ``stream`` on ``ops``, of which the last is ``h2.halt``."""
    return cast(type[BlockOp], OPS["fork"])((stream,), location, Region(Block(ops)))


def setup(address: int, words: Sequence[tuple[str, dict[str, int]]], location: LocationAttr) -> InstructionOp:
    """Return the ``h2.setup`` that executes ``words``, (mnemonic, fields) each; they will lie at ``address``."""
    op = build("setup", location, address=address, count=len(words))
    texts = (f"{mnemonic} {', '.join(format_operands(mnemonic, fields))}" for mnemonic, fields in words)
    op.attributes[WORDS_ATTRIBUTE] = builtin.ArrayAttr(builtin.StringAttr(text) for text in texts)
    return op


def setup_words(op: InstructionOp) -> list[tuple[str, dict[str, int]]]:
    """Return (mnemonic, fields) of the words of an ``h2.setup``; raises VerifyException when they are not legal."""
    words = op.attributes.get(WORDS_ATTRIBUTE)
    found: list[tuple[str, dict[str, int]]] = []
    for text in words if isinstance(words, builtin.ArrayAttr) else ():
        mnemonic, _, operands = text.data.partition(" ") if isinstance(text, builtin.StringAttr) else ("", "", "")
        if mnemonic not in isa.SETUP_WORDS:
            raise VerifyException(f"{op.name} holds {' and '.join(isa.SETUP_WORDS)} only, found {mnemonic!r}")
        try:
            found.append((mnemonic, parse_operands(mnemonic, [part.strip() for part in operands.split(",")])))
        except OperandError as error:
            raise VerifyException(f"{op.name}: {error.message} in {operands!r}") from error
    if len(found) != op.field("count"):
        raise VerifyException(f"{op.name} expects {op.field('count')} words, found {len(found)}")
    return found


@dataclass(frozen=True)
class TensorSymbol:
    """A tensor in DRAM.

    ``dtype`` is one of ``f32 f16 bits slots i32 u8 scalars``, ``shape`` the device shape (logical for bits).
    ``shadow`` names the symbol of a storage copy (fp16 parameters). ``contents`` are constant bytes (neuron constants),
    empty for everything that the host or the program writes. ``plane``: how many channels of all positions lie
    together (0: all of them).
    """

    name: str
    address: int
    size: int
    section: str
    dtype: str
    shape: tuple[int, ...]
    shadow: str = ""
    contents: bytes = b""
    plane: int = 0


def set_symbols(module: builtin.ModuleOp, symbols: Sequence[TensorSymbol], io: Sequence[str]) -> None:
    """Attach the symbols and, for every entry of the io table in order, the name of its symbol."""
    module.attributes[SYMBOLS_ATTRIBUTE] = builtin.ArrayAttr(_symbol_attribute(symbol) for symbol in symbols)
    module.attributes[IO_SYMBOLS_ATTRIBUTE] = builtin.ArrayAttr(builtin.StringAttr(name) for name in io)


def get_symbols(module: builtin.ModuleOp) -> dict[str, TensorSymbol]:
    """Return the symbols by name in their order; raises ValueError when there are none."""
    attribute = module.attributes.get(SYMBOLS_ATTRIBUTE)
    if not isinstance(attribute, builtin.ArrayAttr):
        raise ValueError(f"the module has no {SYMBOLS_ATTRIBUTE}")
    symbols = [_symbol(item) for item in attribute]
    return {symbol.name: symbol for symbol in symbols}


def get_io_symbols(module: builtin.ModuleOp) -> list[TensorSymbol]:
    """Return the symbol of each entry of the io table; raises ValueError when one is missing."""
    attribute = module.attributes.get(IO_SYMBOLS_ATTRIBUTE)
    if not isinstance(attribute, builtin.ArrayAttr):
        raise ValueError(f"the module has no {IO_SYMBOLS_ATTRIBUTE}")
    symbols = get_symbols(module)
    names = [name.data for name in attribute if isinstance(name, builtin.StringAttr)]
    for name in names:
        if name not in symbols:
            raise ValueError(f"{IO_SYMBOLS_ATTRIBUTE} names {name!r}, which is not in {SYMBOLS_ATTRIBUTE}")
    return [symbols[name] for name in names]


def program_module(ops: Sequence[Operation]) -> builtin.ModuleOp:
    """Return a module whose ``@main`` holds ``ops``."""
    return builtin.ModuleOp([func.FuncOp("main", ((), ()), Region(Block(ops)))])


def program_ops(module: builtin.ModuleOp) -> list[InstructionOp]:
    """Return the instructions of ``@main``, those of a block behind its ``h2.fork``, so that the index is the pc.

    Raises VerifyException when the module is not an ``h2`` program.
    """
    functions = [op for op in module.ops if isinstance(op, func.FuncOp) and op.sym_name.data == "main"]
    if len(functions) != 1 or len(functions[0].body.blocks) != 1:
        raise VerifyException("an h2 program is one function @main with one block")
    main = functions[0]
    if main.function_type.inputs.data or main.function_type.outputs.data:
        raise VerifyException("@main of an h2 program has no arguments and no results")
    return [op for outer in _instructions(main.body.block) for op in (outer, *outer.inner)]


def verify_program(module: builtin.ModuleOp) -> None:
    """Check the whole program, its symbols included; raises VerifyException."""
    ops = program_ops(module)
    if not ops or ops[-1].mnemonic != "halt":
        raise VerifyException("the last instruction must be h2.halt")
    module.verify()
    try:
        symbols = get_symbols(module)
        io = get_io_symbols(module)
    except ValueError as error:
        raise VerifyException(str(error)) from error
    for symbol in io:
        if symbol.plane:
            raise VerifyException(f"symbol {symbol.name!r} is in the io table and cannot lie in planes")
    for symbol in symbols.values():
        if symbol.shadow and symbol.shadow not in symbols:
            raise VerifyException(f"symbol {symbol.name!r}: there is no symbol {symbol.shadow!r}")
        if symbol.plane < 0 or (symbol.plane and (not symbol.shape or symbol.shape[-1] % symbol.plane)):
            raise VerifyException(
                f"symbol {symbol.name!r}: planes of {symbol.plane} channels do not divide the shape {symbol.shape}"
            )
        if len(symbol.contents) not in (0, symbol.size):
            raise VerifyException(
                f"symbol {symbol.name!r} has {symbol.size} bytes, its contents have {len(symbol.contents)}"
            )


def verify_block(block: Block) -> None:
    """Check what concerns several instructions: streams, loops, registers and descriptors set before use."""
    _Streams().verify(0, 0, list(_instructions(block)))


@dataclass
class _Streams:
    """What may happen only once in a program: the start of a stream; a queue that takes from a semaphore."""

    started: set[int] = field(default_factory=set)
    consumers: dict[int, tuple[int, int]] = field(default_factory=dict)

    def verify(self, stream: int, first: int, ops: Sequence[InstructionOp]) -> None:
        """Check the instructions of a stream, the first of which has pc ``first``."""
        _verify_stream(first, ops)
        pc = first
        for op in ops:
            if op.mnemonic == "wait":
                sem, consumer = op.field("sem"), (stream, op.field("engine"))
                if self.consumers.setdefault(sem, consumer) != consumer:
                    raise VerifyException(
                        f"{_place(pc, op)} takes from semaphore {sem}, from which another queue takes"
                    )
            elif isinstance(op, BlockOp):
                self._verify_fork(stream, pc, op)
            pc += 1 + len(op.inner)

    def _verify_fork(self, stream: int, pc: int, op: BlockOp) -> None:
        number, body = op.field("stream"), op.inner
        if stream:
            raise VerifyException(f"{_place(pc, op)} stands in stream {stream}, but only stream 0 starts others")
        if number in self.started:
            raise VerifyException(f"{_place(pc, op)} starts stream {number} a second time")
        if not body or body[-1].mnemonic != "halt":
            raise VerifyException(f"{_place(pc, op)} expects a block that ends in h2.halt")
        self.started.add(number)
        self.verify(number, pc + 1, body)


def _verify_stream(first: int, ops: Sequence[InstructionOp]) -> None:
    """Check loops, ``init`` bits, registers and descriptors of one stream."""
    depth = 0
    configured: set[tuple[str, int]] = {("areg", 0)}
    following = first
    for op in ops:
        pc, following = following, following + 1 + len(op.inner)
        if len(op.values) != len(op.row.fields):
            raise VerifyException(f"{_place(pc, op)} expects {len(op.row.fields)} fields, found {len(op.values)}")
        if depth and isinstance(op, BlockOp):
            raise VerifyException(f"{_place(pc, op)} stands inside a loop")
        depth += (op.mnemonic == "loop") - (op.mnemonic == "endl")
        if depth < 0:
            raise VerifyException(f"{_place(pc, op)} closes no loop")
        if depth > isa.MAX_LOOP_DEPTH:
            raise VerifyException(f"{_place(pc, op)} opens loop level {depth}, the machine has {isa.MAX_LOOP_DEPTH}")
        _verify_uses(pc, op, depth, configured)
    if depth:
        raise VerifyException(f"expected balanced loops, found {depth} that are not closed")


def _verify_uses(pc: int, op: InstructionOp, depth: int, configured: set[tuple[str, int]]) -> None:
    """Check one instruction against the loops that are open and what is configured; note what it configures."""
    if op.mnemonic == "setup":
        for mnemonic, values in setup_words(op):
            _note_configured(mnemonic, values, configured)
        return
    fields = op.named_fields()
    if op.mnemonic in isa.SETUP_WORDS:
        _note_configured(op.mnemonic, fields, configured)
        return
    for item in op.row.fields:
        value = fields[item.name]
        if item.kind is isa.Kind.AREG and ("areg", value) not in configured:
            raise VerifyException(f"{_place(pc, op)} uses a{value}, which no addr has set")
        if item.kind is isa.Kind.DESC and (item.of, value) not in configured:
            raise VerifyException(f"{_place(pc, op)} uses {item.of} descriptor {value}, which no cfg has set")
        if item.name == "init" and value & ((1 << _NEVER_INIT) - 1) >> depth << depth:
            raise VerifyException(f"{_place(pc, op)} has init={value:#x}, but only {depth} loops are open")


def _note_configured(mnemonic: str, fields: dict[str, int], configured: set[tuple[str, int]]) -> None:
    """Note the register or descriptor that ``addr`` or ``cfg`` makes usable."""
    if mnemonic == "addr":
        configured.add(("areg", fields["reg"]))
        return
    kind = fields["kind"]
    if 0 <= kind < len(isa.DESCRIPTORS) and isa.DESCRIPTORS[kind].name != "areg":
        configured.add((isa.DESCRIPTORS[kind].name, fields["index"]))


def _instructions(block: Block) -> Iterator[InstructionOp]:
    for op in block.ops:
        if not isinstance(op, InstructionOp):
            raise VerifyException(f"an h2 program holds h2 instructions only, found {op.name}")
        yield op


def _place(pc: int, op: InstructionOp) -> str:
    source = source_of(op)
    return f"pc {pc} ({source}): {op.name}" if source else f"pc {pc}: {op.name}"


def _number(field: isa.Field, value: int | str) -> int:
    if isinstance(value, int):
        return int(value)
    if value not in field.values:
        raise ValueError(f"{field.name} is one of {', '.join(field.values) or 'no names'}, found {value!r}")
    return field.values.index(value)


def _symbol_attribute(symbol: TensorSymbol) -> builtin.DictionaryAttr:
    entries = {
        "name": builtin.StringAttr(symbol.name),
        "address": builtin.IntegerAttr(symbol.address, 64),
        "size": builtin.IntegerAttr(symbol.size, 64),
        "section": builtin.StringAttr(symbol.section),
        "dtype": builtin.StringAttr(symbol.dtype),
        "shape": builtin.DenseArrayBase.from_list(builtin.i64, list(symbol.shape)),
    }
    if symbol.shadow:
        entries["shadow"] = builtin.StringAttr(symbol.shadow)
    if symbol.contents:
        entries["contents"] = builtin.StringAttr(base64.b64encode(symbol.contents).decode())
    if symbol.plane:
        entries["plane"] = builtin.IntegerAttr(symbol.plane, 64)
    return builtin.DictionaryAttr(entries)


def _symbol(item: object) -> TensorSymbol:
    if not isinstance(item, builtin.DictionaryAttr):
        raise ValueError(f"{SYMBOLS_ATTRIBUTE} must hold dictionaries")

    def text(key: str) -> str:
        value = item.data.get(key)
        return value.data if isinstance(value, builtin.StringAttr) else ""

    def number(key: str) -> int:
        value = item.data.get(key)
        if not isinstance(value, builtin.IntegerAttr):
            raise ValueError(f"{SYMBOLS_ATTRIBUTE}: {text('name')!r} has no {key}")
        return value.value.data

    shape = item.data.get("shape")
    if not isinstance(shape, builtin.DenseArrayBase):
        raise ValueError(f"{SYMBOLS_ATTRIBUTE}: {text('name')!r} has no shape")
    return TensorSymbol(
        text("name"),
        number("address"),
        number("size"),
        text("section"),
        text("dtype"),
        tuple(int(n) for n in shape.iter_values()),
        text("shadow"),
        base64.b64decode(text("contents")),
        number("plane") if "plane" in item.data else 0,
    )
