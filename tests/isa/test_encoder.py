"""Every field of every instruction and descriptor: minimum, maximum and one past; reserved bits; bulk = scalar."""

import pytest

from h2learn.backends.h2learn import encoder, isa
from h2learn.backends.h2learn.encoder import Decoded, decode, decode_program, encode, encode_program
from h2learn.backends.h2learn.errors import H2LearnError

PLAIN = [row for row in isa.INSTRUCTIONS if row.mnemonic != "cfg"]
CASES = [(row, field) for row in PLAIN for field in row.fields]
CFG_CASES = [
    (kind, number) for kind, descriptor in enumerate(isa.DESCRIPTORS) for number in range(len(descriptor.fields))
]


def lowest(row: isa.Instruction) -> dict[str, int]:
    return {field.name: field.minimum for field in row.fields}


@pytest.mark.parametrize(
    ("row", "field"), CASES, ids=lambda x: x.mnemonic if isinstance(x, isa.Instruction) else x.name
)
def test_field_extremes_round_trip_and_one_past_is_refused(row: isa.Instruction, field: isa.Field) -> None:
    for value in {field.minimum, field.minimum + 1, field.maximum - 1, field.maximum}:
        if not field.minimum <= value <= field.maximum:
            continue
        fields = lowest(row) | {field.name: value}
        word = encode(row.mnemonic, fields)
        assert len(word) == isa.WORD_BYTES
        assert word[0] == row.opcode
        expected = (value & ((1 << field.bits) - 1)) << isa.field_offset(row, field.name)
        mask = ((1 << field.bits) - 1) << isa.field_offset(row, field.name)
        assert int.from_bytes(word, "little") & mask == expected
        assert decode(word) == Decoded(row.mnemonic, fields)
        assert decode_program(word) == [Decoded(row.mnemonic, fields)]
    for value in (field.minimum - 1, field.maximum + 1):
        with pytest.raises(H2LearnError, match=field.name):
            encode(row.mnemonic, lowest(row) | {field.name: value})


@pytest.mark.parametrize(
    ("row", "field"), CASES, ids=lambda x: x.mnemonic if isinstance(x, isa.Instruction) else x.name
)
def test_values_that_fit_the_bits_but_not_the_range_are_refused_by_decode(
    row: isa.Instruction, field: isa.Field
) -> None:
    offset = isa.field_offset(row, field.name)
    for value in (field.minimum - 1, field.maximum + 1):
        raw = value & ((1 << field.bits) - 1)
        signed = raw - (1 << field.bits) if field.kind is isa.Kind.INT and raw >> (field.bits - 1) else raw
        if signed != value:
            continue  # does not fit the bits at all
        base = int.from_bytes(encode(row.mnemonic, lowest(row)), "little")
        word = (base & ~(((1 << field.bits) - 1) << offset) | raw << offset).to_bytes(16, "little")
        for read in (decode, decode_program):
            with pytest.raises(H2LearnError, match=field.name):
                read(word)


@pytest.mark.parametrize(("kind", "number"), CFG_CASES)
def test_cfg_values_round_trip_and_one_past_is_refused(kind: int, number: int) -> None:
    descriptor = isa.DESCRIPTORS[kind]
    field = descriptor.fields[number]
    for index in (1, descriptor.count - 1):
        for value in (field.minimum, field.maximum):
            fields = {"kind": kind, "index": index, "field": number, "value": value}
            word = encode("cfg", fields)
            assert decode(word) == Decoded("cfg", fields)
            assert decode_program(word) == [Decoded("cfg", fields)]
    for value in (field.minimum - 1, field.maximum + 1):
        fields = {"kind": kind, "index": 1, "field": number, "value": value}
        with pytest.raises(H2LearnError, match=field.name):
            encode("cfg", fields)
        good = int.from_bytes(encode("cfg", fields | {"value": field.minimum}), "little")
        shift = isa.field_offset(isa.BY_MNEMONIC["cfg"], "value")
        word = (good & ((1 << shift) - 1) | (value & (2**64 - 1)) << shift).to_bytes(16, "little")
        with pytest.raises(H2LearnError, match=field.name):
            decode(word)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 2, "index": 64, "field": 0, "value": 0},
        {"kind": 2, "index": 0, "field": len(isa.DESCRIPTORS[2].fields), "value": 0},
        {"kind": 0, "index": 0, "field": 0, "value": 0},
        {"kind": len(isa.DESCRIPTORS), "index": 0, "field": 0, "value": 0},
    ],
)
def test_cfg_of_a_missing_descriptor_or_field_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(H2LearnError, match="cfg"):
        encode("cfg", fields)


def test_every_bit_is_accounted_for() -> None:
    for row in isa.INSTRUCTIONS:
        used = (1 << isa.OPCODE_BITS) - 1
        for placed in encoder.LAYOUT[row.mnemonic]:
            mask = ((1 << placed.field.bits) - 1) << placed.shift
            assert not used & mask, f"{row.mnemonic}.{placed.field.name} overlaps"
            assert placed.shift == isa.field_offset(row, placed.field.name)
            used |= mask
        assert used & (used + 1) == 0, f"{row.mnemonic} has a gap"
        first_reserved = used.bit_length()
        fields = lowest(row) | ({"index": 1} if row.mnemonic == "cfg" else {})
        word = int.from_bytes(encode(row.mnemonic, fields), "little")
        for bit in range(first_reserved, 128):
            bad = (word | 1 << bit).to_bytes(16, "little")
            with pytest.raises(H2LearnError, match="reserved"):
                decode(bad)
            with pytest.raises(H2LearnError, match="reserved"):
                decode_program(bad)


def test_unknown_opcodes_name_the_pc() -> None:
    good = encode("halt", {})
    for opcode in set(range(256)) - set(isa.BY_OPCODE):
        with pytest.raises(H2LearnError) as caught:
            decode_program(good * 3 + bytes([opcode]) + bytes(15))
        assert caught.value.location == "pc 3"


def test_missing_and_unknown_fields_are_refused() -> None:
    with pytest.raises(H2LearnError, match=r"no instruction 'fe\.walk'"):
        encode("fe.walk", {})
    with pytest.raises(H2LearnError, match="has the fields engine"):
        encode("nop", {})
    with pytest.raises(H2LearnError, match="has the fields engine"):
        encode("nop", {"engine": 0, "extra": 1})


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(H2LearnError, match="16 bytes"):
        decode(b"\0" * 15)
    with pytest.raises(H2LearnError, match="multiple of 16"):
        decode_program(b"\0" * 17)
    assert decode_program(b"") == []


def test_encode_program_names_the_pc() -> None:
    with pytest.raises(H2LearnError) as caught:
        encode_program([Decoded("halt", {}), Decoded("nop", {"engine": 6})])
    assert caught.value.location == "pc 1"
