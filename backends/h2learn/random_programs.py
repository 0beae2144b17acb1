"""Random legal programs for tests: every operand legal, loops balanced, registers and descriptors set before use.

Some start streams. No two queues take from one semaphore.
"""

from __future__ import annotations

import numpy as np

from .encoder import Decoded
from .isa import (
    BY_MNEMONIC,
    CONTROL,
    DESCRIPTORS,
    INSTRUCTIONS,
    MAX_LOOP_DEPTH,
    NEVER_INIT,
    STREAMS,
    Field,
    Instruction,
    Kind,
)

_APART = ("halt", "fork", "loop", "endl", "addr", "cfg", "setup")
_BODY = tuple(row for row in INSTRUCTIONS if row.mnemonic not in _APART)
_KIND_OF = {descriptor.name: number for number, descriptor in enumerate(DESCRIPTORS)}


def random_value(field: Field, rng: np.random.Generator) -> int:
    """Return a legal value of ``field``: an extreme, a small or any number."""
    low, high = field.minimum, field.maximum
    choice = int(rng.integers(4))
    if choice == 0:
        return low
    if choice == 1:
        return high
    if choice == 2:
        return min(high, max(low, int(rng.integers(0, 100))))
    return low + int.from_bytes(rng.bytes(9), "little") % (high - low + 1)


def random_fields(row: Instruction, rng: np.random.Generator) -> dict[str, int]:
    """Return legal fields of ``row``; a ``cfg`` writes any field of any descriptor."""
    if row.mnemonic != "cfg":
        return {field.name: random_value(field, rng) for field in row.fields}
    kind = int(rng.integers(len(DESCRIPTORS)))
    return _random_cfg(kind, int(rng.integers(1, DESCRIPTORS[kind].count)), rng)


def random_program(rng: np.random.Generator, instructions: int = 100) -> list[Decoded]:
    """Return a legal program of at least ``instructions`` instructions that ends in ``halt``."""
    consumers: dict[int, tuple[int, int]] = {}
    started = rng.permutation(np.arange(1, STREAMS))[: rng.integers(STREAMS)].tolist()
    share = instructions // (len(started) + 1)
    program = _random_stream(rng, 0, share, consumers)
    for stream in started:
        block = [*_random_stream(rng, stream, share, consumers), Decoded("halt", {})]
        program += [Decoded("fork", {"stream": stream, "length": len(block)}), *block]
    return [*program, *_random_stream(rng, 0, share, consumers), Decoded("halt", {})]


def _random_stream(
    rng: np.random.Generator, stream: int, instructions: int, consumers: dict[int, tuple[int, int]]
) -> list[Decoded]:
    """Return instructions of one stream with balanced loops."""
    program: list[Decoded] = []
    configured: set[tuple[str, int]] = {("areg", 0)}
    depth = 0
    while len(program) < instructions:
        choice = int(rng.integers(8))
        if choice == 0 and depth < MAX_LOOP_DEPTH:
            program.append(Decoded("loop", {"count": int(rng.integers(0, 4))}))
            depth += 1
        elif choice == 1 and depth:
            program.append(Decoded("endl", {}))
            depth -= 1
        elif choice == 2:
            program.append(Decoded("cfg", random_fields(BY_MNEMONIC["cfg"], rng)))
            kind = DESCRIPTORS[program[-1].fields["kind"]].name
            if kind != "areg":
                configured.add((kind, program[-1].fields["index"]))
        else:
            _append_with_setup(program, _BODY[int(rng.integers(len(_BODY)))], configured, depth, rng)
            last = program[-1]
            if last.mnemonic == "wait":
                consumer = (stream, last.fields["engine"])
                if consumers.setdefault(last.fields["sem"], consumer) != consumer:
                    program[-1] = Decoded("nop", {"engine": last.fields["engine"]})
    return [*program, *[Decoded("endl", {})] * depth]


def _append_with_setup(
    program: list[Decoded], row: Instruction, configured: set[tuple[str, int]], depth: int, rng: np.random.Generator
) -> None:
    fields = random_fields(row, rng)
    if "init" in fields and row.engine != CONTROL:
        open_levels = (1 << depth) - 1
        fields["init"] &= open_levels | NEVER_INIT
    for field in row.fields:
        value = fields[field.name]
        if field.kind is Kind.AREG and ("areg", value) not in configured:
            configured.add(("areg", value))
            program.append(Decoded("addr", random_fields(BY_MNEMONIC["addr"], rng) | {"reg": value}))
        elif field.kind is Kind.DESC and (field.of, value) not in configured:
            configured.add((field.of, value))
            program.append(Decoded("cfg", _random_cfg(_KIND_OF[field.of], value, rng)))
    program.append(Decoded(row.mnemonic, fields))


def _random_cfg(kind: int, index: int, rng: np.random.Generator) -> dict[str, int]:
    number = int(rng.integers(len(DESCRIPTORS[kind].fields)))
    value = random_value(DESCRIPTORS[kind].fields[number], rng)
    return {"kind": kind, "index": index, "field": number, "value": value}
