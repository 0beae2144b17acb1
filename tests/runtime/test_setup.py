"""The ``setup`` instruction: configuration words from constant data."""

import pytest

from h2learn.backends.h2learn.encoder import Decoded, encode
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import DESCRIPTORS, MEMORIES
from h2learn.backends.h2learn.machine import load_machine
from h2learn.runtime.frontend import FrontEnd
from h2learn.runtime.loader import LoadedProgram, Segment, program_of
from h2learn.runtime.simulator import Simulator

BASE = 0x1000
CONV = next(n for n, d in enumerate(DESCRIPTORS) if d.name == "conv")
WORDS = [
    Decoded("addr", {"reg": 3, "mem": MEMORIES.index("S"), "base": 64}),
    Decoded("cfg", {"kind": 0, "index": 3, "field": 1, "value": 128}),
    Decoded("cfg", {"kind": CONV, "index": 2, "field": 0, "value": 7}),
]


def program(words: list[Decoded], count: int, address: int = BASE, *, writable: bool = False) -> LoadedProgram:
    contents = b"".join(encode(word.mnemonic, word.fields) for word in words)
    code = [Decoded("setup", {"address": address, "count": count}), Decoded("halt", {})]
    segment = Segment("rodata", BASE, len(contents), contents, writable)
    return program_of(code, load_machine("h2l-v0"), [segment])


def test_words_take_effect_and_a_cycle_each() -> None:
    stream = FrontEnd(program(WORDS, 3), None, None).streams[0]
    (halt,) = stream.fetch(10)
    assert (stream.registers[3].memory, stream.registers[3].value([0, 2, 0, 0, 0, 0, 0, 0])) == ("S", 64 + 2 * 128)
    assert stream.descriptors[CONV][2].fields["imgs"] == 7
    assert stream.executed == 2 + 3
    assert halt.template.mnemonic == "halt" and halt.cost == 2 + 3


def test_a_prefix_of_the_table() -> None:
    stream = FrontEnd(program(WORDS, 1), None, None).streams[0]
    stream.fetch(10)
    assert stream.registers[3].value([0, 2, 0, 0, 0, 0, 0, 0]) == 64


def test_the_limit_on_instructions_counts_the_words() -> None:
    with pytest.raises(H2LearnError, match="without reaching halt"):
        Simulator(program(WORDS, 3), max_instructions=3).run()


@pytest.mark.parametrize(
    ("words", "count", "address", "writable", "message"),
    [
        (WORDS, 4, BASE, False, "do not lie in constant data"),
        (WORDS, 1, BASE - 16, False, "do not lie in constant data"),
        (WORDS, 3, BASE, True, "do not lie in constant data"),
        ([Decoded("loop", {"count": 2})], 1, BASE, False, "setup cannot execute loop"),
        ([Decoded("halt", {})], 1, BASE, False, "setup cannot execute halt"),
    ],
)
def test_refused_tables(words: list[Decoded], count: int, address: int, writable: bool, message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        program(words, count, address, writable=writable)
