"""The generated op classes: building, printing, parsing, verification."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects import builtin, func
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.encoder import Decoded
from h2learn.backends.h2learn.random_programs import random_fields, random_program
from h2learn.dialects import h2
from h2learn.dialects.common import IoEntry, file_location, set_io, source_of

PLACE = file_location("net.snn", 3, 7)


def parse(text: str) -> builtin.ModuleOp:
    context = Context()
    for dialect in (builtin.Builtin, func.Func, h2.H2):
        context.load_dialect(dialect)
    return Parser(context, text).parse_module()


def show(module: builtin.ModuleOp) -> str:
    stream = io.StringIO()
    Printer(stream, print_debuginfo=True).print_op(module)
    return stream.getvalue()


def program(*lines: str) -> builtin.ModuleOp:
    return parse("func.func @main() {\n" + "\n".join(lines) + "\n}")


def test_there_is_one_class_per_row() -> None:
    assert {op.name for op in h2.H2.operations} == {f"h2.{row.mnemonic}" for row in isa.INSTRUCTIONS}


@pytest.mark.parametrize("row", isa.INSTRUCTIONS, ids=lambda row: row.mnemonic)
def test_every_op_prints_as_assembly_and_parses(row: isa.Instruction) -> None:
    rng = np.random.default_rng(row.opcode)
    if row.block:
        ops = [h2.fork(2, [h2.build("halt", PLACE)], PLACE)]
    else:
        count = 10 if row.mnemonic != "halt" else 1
        ops = [h2.build(row.mnemonic, PLACE, **random_fields(row, rng)) for _ in range(count)]
    ops[0].attributes["loops"] = builtin.StringAttr("t,tile")
    module = h2.program_module(ops)
    text = show(module)
    again = parse(text)
    assert show(again) == text
    assert again.is_structurally_equivalent(module)
    assert {source_of(op) for op in h2.program_ops(again)} == {"net.snn:3:7"}
    assert [op.named_fields() for op in h2.program_ops(again)] == [op.named_fields() for op in h2.program_ops(module)]


def test_text_is_the_assembler_syntax() -> None:
    lines = [
        "h2.addr a3, S, 0x40",
        "h2.cfg c0.imgs, 32",
        "h2.cfg n0.width, 0.5",
        "h2.cfg n0.height, f32(0x7fc00001)",
        "h2.cfg n1.width, 1e-20",
        "h2.fe.run acc=a3, s=a3, lut=a0, desc=c0, init=0, shape=16x128",
        "h2.signal FE, 5, 1",
        "h2.halt",
    ]
    text = show(program(*lines))
    assert all(f"    {line} loc(unknown)\n" in text for line in lines)


def nested(items: Sequence[Decoded]) -> list[Operation]:
    """Return the ops of a flat program."""
    ops: list[Operation] = []
    pc = 0
    while pc < len(items):
        item = items[pc]
        end = pc + 1 + item.fields.get("length", 0)
        if item.mnemonic == "fork":
            ops.append(h2.fork(item.fields["stream"], nested(items[pc + 1 : end]), PLACE))
        else:
            ops.append(h2.build(item.mnemonic, PLACE, **item.fields))
        pc = end
    return ops


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_verify(seed: int) -> None:
    items = random_program(np.random.default_rng(seed), 150)
    module = h2.program_module(nested(items))
    module.verify()
    assert [(op.mnemonic, op.named_fields()) for op in h2.program_ops(module)] == [
        (item.mnemonic, item.fields) for item in items
    ]
    assert parse(show(module)).is_structurally_equivalent(module)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["h2.endl", "h2.halt"], "pc 0: h2.endl closes no loop"),
        (["h2.loop 2", "h2.halt"], "1 that are not closed"),
        (["h2.loop 1"] * 9 + ["h2.endl"] * 9 + ["h2.halt"], "opens loop level 9, the machine has 8"),
        (["h2.cfg c1.k, 1", "h2.fe.fill lut=a0, w=a1, desc=c1", "h2.halt"], "uses a1, which no addr has set"),
        (["h2.fe.fill lut=a0, w=a0, desc=c1", "h2.halt"], "uses conv descriptor 1, which no cfg has set"),
        (["h2.cfg p1.k, 1", "h2.fe.fill lut=a0, w=a0, desc=c1", "h2.halt"], "uses conv descriptor 1"),
        (
            ["h2.cfg c1.k, 1", "h2.loop 1", "h2.be.wgt acc=a0, x=a0, g=a0, desc=c1, init=2", "h2.endl", "h2.halt"],
            "init=0x2, but only 1 loops are open",
        ),
        (["h2.halt", "h2.fence"], "last instruction must be h2.halt"),
        (["h2.loop 2", "h2.fork 1 {", "h2.halt", "}", "h2.endl", "h2.halt"], "pc 1: h2.fork stands inside a loop"),
        (["h2.fork 1 {", "h2.fork 2 {", "h2.halt", "}", "h2.halt", "}", "h2.halt"], "only stream 0 starts others"),
        (["h2.fork 1 {", "h2.halt", "}"] * 2 + ["h2.halt"], "pc 2: h2.fork starts stream 1 a second time"),
        (["h2.fork 1 {", "h2.fence", "}", "h2.halt"], "is not a terminator"),
        (["h2.fork 1 {", "h2.loop 2", "h2.halt", "}", "h2.halt"], "1 that are not closed"),
        (
            [
                "h2.addr a1, S, 0",
                "h2.fork 1 {",
                "h2.v.rng dst=a1, src=a0, scal=a0, pos=a0, neu=a0, tick=a0, desc=v0",
                "h2.halt",
                "}",
                "h2.halt",
            ],
            "pc 2: h2.v.rng uses a1, which no addr has set",
        ),
        (
            ["h2.wait FE, 1, 1", "h2.fork 1 {", "h2.wait FE, 1, 1", "h2.halt", "}", "h2.halt"],
            "pc 2: h2.wait takes from",
        ),
        (["h2.halt", "h2.halt"], "terminator|last"),
        (["h2.fence"], "last instruction must be h2.halt"),
        (['"test.op"() : () -> ()', "h2.halt"], "found builtin.unregistered|test.op"),
    ],
)
def test_illegal_programs_are_refused(lines: list[str], message: str) -> None:
    context = Context(allow_unregistered=True)
    for dialect in (builtin.Builtin, func.Func, h2.H2):
        context.load_dialect(dialect)
    module = Parser(context, "func.func @main() {\n" + "\n".join(lines) + "\n}").parse_module()
    with pytest.raises(VerifyException, match=message):
        h2.verify_program(module)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("h2.signal FE, 128, 1", "sem must be 0 to 127"),
        ("h2.cfg c0.images, 1", "no field 'images'"),
        ("h2.v.opt p=a1, g=a1", "',' expected|Expected"),
        ("h2.nop VECC", "unknown value 'VECC'"),
        ("h2.fork 0 {\nh2.halt\n}", "stream must be 1 to 5"),
        ("h2.fork 1", "Expected region"),
    ],
)
def test_text_that_is_not_legal_is_refused(line: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        program(line, "h2.halt")


@pytest.mark.parametrize(
    ("mnemonic", "fields"), [("signal", {"engine": 6, "sem": 0, "count": 1}), ("loop", {"count": -1})]
)
def test_fields_out_of_range_are_refused_and_print(mnemonic: str, fields: dict[str, int]) -> None:
    op = h2.build(mnemonic, PLACE, **fields)
    with pytest.raises(VerifyException, match="must be 0 to"):
        op.verify()
    assert "illegal" in str(op)


def test_builders() -> None:
    op = h2.build("fe.run", PLACE, acc=1, s=2, lut=3, desc=4, init=0, shape="64x32")
    assert op.field("shape") == 2
    assert source_of(op) == "net.snn:3:7"
    assert h2.configure("neuron", 2, "width", 0.5, PLACE).field("value") == 0x3F000000
    assert h2.configure("neuron", 2, "reset", "soft", PLACE).field("value") == 1
    assert h2.configure("areg", 2, "stride3", -8, PLACE).field("value") == -8
    with pytest.raises(ValueError, match="has the fields"):
        h2.build("nop", PLACE)
    with pytest.raises(ValueError, match="is missing"):
        h2.build("nop", PLACE, engin=1)
    with pytest.raises(ValueError, match="one of"):
        h2.build("nop", PLACE, engine="GPU")


def test_symbols_survive_printing() -> None:
    module = program("h2.halt")
    symbols = [
        h2.TensorSymbol("w", 0x1000, 8, "data", "f32", (2, 4), shadow="w.f16"),
        h2.TensorSymbol("w.f16", 0x1008, 16, "data", "f16", (2, 4), plane=2),
        h2.TensorSymbol("c", 0x2000, 4, "rodata", "f32", (), contents=b"\0\xff\n;"),
    ]
    h2.set_symbols(module, symbols, ["w"])
    set_io(module, [IoEntry("w", "parameter")])
    again = parse(show(module))
    assert list(h2.get_symbols(again).values()) == symbols
    assert h2.get_io_symbols(again) == [symbols[0]]
    h2.verify_program(again)
    h2.set_symbols(module, symbols, ["q"])
    with pytest.raises(VerifyException, match="'q'"):
        h2.verify_program(module)
    h2.set_symbols(module, symbols[:1], ["w"])
    with pytest.raises(VerifyException, match=r"no symbol 'w\.f16'"):
        h2.verify_program(module)


@pytest.mark.parametrize("plane", [-1, 3, 8])
def test_planes_divide_the_channels(plane: int) -> None:
    module = program("h2.halt")
    symbols = [h2.TensorSymbol("w", 0x1000, 16, "bss", "f16", (2, 4), plane=plane)]
    h2.set_symbols(module, symbols, [])
    with pytest.raises(VerifyException, match=f"symbol 'w': planes of {plane} channels do not divide"):
        h2.verify_program(module)


def test_what_the_host_reads_and_writes_lies_in_no_planes() -> None:
    module = program("h2.halt")
    h2.set_symbols(module, [h2.TensorSymbol("w", 0x1000, 16, "bss", "f16", (2, 4), plane=2)], ["w"])
    set_io(module, [IoEntry("w", "output")])
    with pytest.raises(VerifyException, match="'w' is in the io table and cannot lie in planes"):
        h2.verify_program(module)
