"""Text to object file and back; errors point at the operand."""

import re
from itertools import pairwise

import numpy as np
import pytest

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.assembler import assemble, disassemble, format_instruction, objdump, parse_operands
from h2learn.backends.h2learn.encoder import decode_program, encode_program
from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.h2learn.machine import load_machine
from h2learn.backends.h2learn.object_file import ObjectFile, Symbol, new_note, read_object, write_object
from h2learn.backends.h2learn.random_programs import random_fields, random_program


def example(seed: int, instructions: int = 60) -> ObjectFile:
    rng = np.random.default_rng(seed)
    text = encode_program(random_program(rng, instructions))
    count = len(text) // 16
    data = bytes(200) + rng.bytes(300) + bytes(int(rng.integers(0, 400)))
    io = [
        {"name": "wéight;,", "role": "parameter", "symbol": 'a "b", \\;', "dtype": "f32", "shape": [3, 2]}
        | {"view": [2, -1], "perm": [1, 0], "shadow": "s"}
    ]
    cuts = sorted({int(c) for c in rng.integers(0, count, 6)})
    ranges = list(pairwise(cuts))
    locations = [(a, b - 1, f"net.snn:{a}:1", "t,n" * (a % 2)) for a, b in ranges[:2] + ranges[3:]]
    return ObjectFile(
        text,
        b"\1" * 5,
        data,
        7777,
        {"rodata": 0x1000, "data": 0x2000, "bss": 0x8000},
        {
            'a "b", \\;': Symbol('a "b", \\;', 0x2010, 64, "data"),
            "s": Symbol("s", 0x8000, 7777, "bss"),
            "é": Symbol("é", 0x1005, 0, "rodata"),
        },
        new_note(load_machine("h2l-edge"), io=io, extra={"x": [1.5, None, "a;b"]}),
        locations,
    )


@pytest.mark.parametrize("seed", range(20))
def test_disassembly_assembles_to_the_same_bytes(seed: int) -> None:
    obj = example(seed)
    contents = write_object(obj)
    assert read_object(contents) == obj
    again = assemble(disassemble(read_object(contents)))
    assert again == obj
    assert write_object(again) == contents


@pytest.mark.parametrize("row", isa.INSTRUCTIONS, ids=lambda row: row.mnemonic)
def test_every_instruction_prints_and_parses(row: isa.Instruction) -> None:
    rng = np.random.default_rng(row.opcode)
    for _ in range(50):
        fields = random_fields(row, rng)
        mnemonic, _, operands = format_instruction(row.mnemonic, fields).partition(" ")
        assert mnemonic == row.mnemonic
        fields.pop(row.block, None)
        assert parse_operands(mnemonic, operands.split(", ") if operands else []) == fields


@pytest.mark.parametrize(
    "bits", [0, 0x80000000, 0x3F000000, 0x3DCCCCCD, 1, 0x7F7FFFFF, 0x7F800000, 0x7FC00001, 0xFFFFFFFF]
)
def test_binary32_values_keep_their_bits(bits: int) -> None:
    number = isa.DESCRIPTOR_BY_NAME["neuron"].field_index("width")
    kind = isa.DESCRIPTORS.index(isa.DESCRIPTOR_BY_NAME["neuron"])
    fields = {"kind": kind, "index": 3, "field": number, "value": bits}
    text = format_instruction("cfg", fields)
    assert parse_operands("cfg", text.removeprefix("cfg ").split(", ")) == fields


def test_hand_written_program_for_the_default_machine() -> None:
    obj = assemble(
        """
        ; doubles nothing, twice
        .data 0x1000
        .hex 0000803f 00000040   ; 1.0, 2.0
        .zero 8
        .symbol "x", data, 0x1000, 16
        .text
        addr a3, S, -0x40
        cfg a3.stride1, -128
        cfg n0.width, 0.5
        cfg c2.dtype, f16
        .loc "net.snn:3:1", "t"
        loop 2
          fe.run acc=a1, s=a3, lut=a4, desc=c0, init=0x1, shape=16x128
          signal FE, 5, 1
        endl
        .endloc
        halt
        """,
        "hand.s",
    )
    assert obj.data == np.array([1, 2, 0, 0], "<f4").tobytes()
    assert obj.note["machine"]["name"] == "h2l-v0"
    assert obj.locations == [(4, 7, "net.snn:3:1", "t")]
    program = decode_program(obj.text)
    assert [item.mnemonic for item in program] == [
        "addr",
        "cfg",
        "cfg",
        "cfg",
        "loop",
        "fe.run",
        "signal",
        "endl",
        "halt",
    ]
    assert program[0].fields == {"reg": 3, "mem": isa.MEMORIES.index("S"), "base": -64}
    assert program[1].fields["value"] == -128
    assert program[2].fields["value"] == 0x3F000000
    assert program[3].fields["value"] == 1
    assert program[5].fields == {"acc": 1, "s": 3, "lut": 4, "desc": 0, "init": 1, "shape": 0}
    assert "  fe.run acc=a1" in disassemble(obj)


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("fe.walk acc=a1", 1, "there is no instruction 'fe.walk'"),
        ("  nop VECC", 7, "unknown value 'VECC'"),
        ("signal FE, 128, 1", 12, "sem must be 0 to 127, found 128"),
        ("signal FE, 5", 1, "operand 'count' is missing"),
        ("signal FE, 5, 1, 2", 18, "has 3 operands, found more"),
        ("wu.run acc=a1, acc=a2", 16, "given twice"),
        ("wu.run acc=a1, b=a2", 16, "has no operand 'b'"),
        ("wu.run acc=c1, s=a2", 8, "expected a register such as a3, found 'c1'"),
        ("wu.run a1", 8, "expected field=value"),
        ("cfg c64.imgs, 1", 5, "there are 64 conv descriptors"),
        ("cfg c6.images, 1", 5, "no field 'images'"),
        ("cfg z6.images, 1", 5, "expected a descriptor field"),
        ("cfg c6.fan, 9", 13, "fan must be 0 to 8, found 9"),
        ("cfg n6.width, nan", 15, "not a finite"),
        ("cfg n6.width, many", 15, "expected a number"),
        ("addr a0, S, 0", 6, "reg must be 1 to 255"),
        ("loop 0x", 6, "expected an integer"),
        ("loop ,", 5, "expected an operand"),
        (".hex 00", 5, "belongs below"),
        (".wrong", 1, "there is no directive"),
        (".symbol x, data, 1, 1", 9, "expected a string"),
        (".note machine {", 15, "not valid JSON"),
        ("12 halt", 1, "expected an instruction"),
    ],
)
def test_errors_name_line_and_column(line: str, column: int, message: str) -> None:
    with pytest.raises(H2LearnError, match=re.escape(message)) as caught:
        assemble(f"halt\n{line}\n", "bad.s")
    assert caught.value.location == Location("bad.s", 2, column)
    assert caught.value.excerpt.splitlines()[1].index("^") == column + 1


def test_objdump_names_everything() -> None:
    obj = example(3)
    text = objdump(obj)
    for word in ("h2l-edge", "wéight", ".bss", "0x8000", "parameter", *(source for _, _, source, _ in obj.locations)):
        assert word in text
    assert len(re.findall(r"^ +\d+  +\S", text, re.MULTILINE)) == len(obj.text) // 16
