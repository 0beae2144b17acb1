"""What the loader accepts and refuses, and the image it makes."""

import pytest

from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import isa_hash
from h2learn.backends.h2learn.machine import load_machine
from h2learn.backends.h2learn.object_file import write_object
from h2learn.runtime.loader import Segment, load, program_of

TEXT = """
.machine h2l-edge
.rodata 0x1000
.hex 0102
.data 0x3000
.hex 0a0b0c
.bss 0x5000, 4096
.symbol "weights", data, 0x3000, 3
.text
nop FE
.loc "net.snn:3:1", "t, tile"
loop 2
  nop BE
endl
.endloc
halt
"""


def test_an_object_file_becomes_a_program(tmp_path):
    obj = assemble(TEXT)
    path = tmp_path / "net.h2x"
    obj.save(path)
    for source in (obj, path, str(path)):
        program = load(source)
        assert [item.mnemonic for item in program.code] == ["nop", "loop", "nop", "endl", "halt"]
        assert program.matches == [-1, 3, -1, 1, -1] and program.depths == [0, 0, 1, 1, 0]
        assert program.machine == load_machine("h2l-edge")
        assert program.symbols["weights"].address == 0x3000


def test_memory_is_as_large_as_the_program_and_the_machine():
    program = load(assemble(TEXT))
    memories = program.new_memories()
    dram = memories.arrays["DRAM"]
    assert memories.dram_base == 0x1000 and dram.size == 0x5000
    assert dram[:3].tolist() == [1, 2, 0] and dram[0x2000:0x2004].tolist() == [10, 11, 12, 0]
    assert not dram[0x4000:].any()
    assert memories.arrays["G"].size == 256 << 10 and set(memories.arrays) == {"DRAM", *"WSUGMAL"}


def test_the_image_can_be_put_back():
    program = load(assemble(TEXT))
    memories = program.new_memories()
    before = memories.arrays["DRAM"].copy()
    for address, size in ((0x1000, 2), (0x3000, 3), (0x5000, 4096)):
        memories.arrays["DRAM"][address - 0x1000 : address - 0x1000 + size] = 77
    program.place_image(memories)
    assert (memories.arrays["DRAM"] == before).all()


def test_places_are_described_with_their_loops():
    program = load(assemble(TEXT))
    assert program.describe(0) == "pc 0" and program.source(0) == ""
    assert program.describe(2, (1,)) == "pc 2 (net.snn:3:1, t=1)"
    assert program.describe(2, (1, 5, 6)) == "pc 2 (net.snn:3:1, t=1, tile=5, loop 2=6)"
    assert program.describe(4) == "pc 4"


def test_another_instruction_set_is_refused_by_both_names():
    obj = assemble(TEXT)
    obj.note["isa_hash"] = "0123456789abcdef"
    with pytest.raises(H2LearnError, match=rf"version 1 \(0123456789abcdef\), this is version 1 \({isa_hash()}\)"):
        load(obj)
    obj = assemble(TEXT)
    obj.note["isa_version"] = 7
    with pytest.raises(H2LearnError, match=r"for instruction set version 7 .* this is version 1"):
        load(obj)


def test_another_machine_is_refused_by_both_names():
    obj, edge, other = assemble(TEXT), load_machine("h2l-edge"), load_machine("h2l-v0")
    assert load(obj, machine=edge).machine == edge
    with pytest.raises(H2LearnError, match=rf"'h2l-edge' \({edge.hash}\), not for 'h2l-v0' \({other.hash}\)"):
        load(obj, machine=other)


def test_illegal_words_name_the_pc():
    obj = assemble(TEXT)
    obj.text = obj.text[:16] + bytes([0xEE]) + bytes(15) + obj.text[32:]
    with pytest.raises(H2LearnError) as caught:
        load(obj)
    assert "0xee" in caught.value.message and "pc 1" in str(caught.value.location)


def test_data_beyond_the_machine():
    edge = load_machine("h2l-edge")
    beyond = [Segment("bss", 0x1000, 4 << 30, b"", True)]
    with pytest.raises(H2LearnError, match="past the 0x100000000 bytes of DRAM of machine 'h2l-edge'"):
        program_of([], edge, beyond)


def test_damaged_files_are_refused_with_one_sentence(tmp_path):
    contents = write_object(assemble(TEXT))
    path = tmp_path / "short.h2x"
    for size in (0, 10, 100, len(contents) - 1):
        path.write_bytes(contents[:size])
        with pytest.raises(H2LearnError):
            load(path)
    with pytest.raises(H2LearnError):
        load(tmp_path / "missing.h2x")
