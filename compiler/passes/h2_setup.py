"""Set-up of a stage: which address registers and descriptors it uses, and the words that fill them.

Words go into one table of constants, from which ``setup`` executes them; what still holds the right contents is not
written again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from h2learn.backends.h2learn import isa
from h2learn.compiler.mapping.registers import ContentCache
from h2learn.compiler.passes.h2_transfer import Linear
from h2learn.dialects.h2 import ops as h2

NO_REGISTER = 0
Ring = tuple[()] | tuple[int, int, tuple[int, ...]]
"""Nothing, or (slots, bytes per slot, slots per iteration of each loop level)."""


@dataclass
class Word:
    """One ``addr`` or ``cfg``; ``moves``: its base is a DRAM address behind the table of words."""

    mnemonic: str
    fields: dict[str, int]
    moves: bool = False


@dataclass
class SetupTable:
    """The registers and descriptors of the machine, and the words of the stage being written."""

    words: list[Word] = field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self._registers = ContentCache(1, isa.ADDRESS_REGISTERS - 1, "address registers")
        self._caches = {d.name: ContentCache(0, d.count, f"{d.name} descriptors") for d in isa.DESCRIPTORS[1:]}
        self._held: dict[tuple[str, int], dict[str, int | float | str]] = {}
        self._cleared = True  # what was never written holds zeros

    def new_stage(self) -> None:
        """Start the words of another stage."""
        self.words = []
        self._registers.new_stage()
        for cache in self._caches.values():
            cache.new_stage()

    def forget(self) -> None:
        """Take all contents as unknown: at the head of a loop they are what its end left, or what was before."""
        self._registers.forget()
        for cache in self._caches.values():
            cache.forget()
        self._held.clear()
        self._cleared = False

    def register(self, memory: str, value: Linear, ring: Ring = (), *, moves: bool = False) -> int:
        """Return the address register that holds an affine address."""
        strides = tuple((level, c) for level, c in enumerate(value.coeffs) if c)
        number, known = self._registers.get((memory, value.offset, strides, ring))
        if known:
            return number
        base = {"reg": number, "mem": isa.MEMORIES.index(memory), "base": value.offset}
        self._write(Word("addr", base, moves))
        for level, stride in strides:
            self._configure("areg", number, f"stride{level}", stride)
        if ring:
            slots, slot_bytes, steps = ring
            self._configure("areg", number, "ring", slots)
            self._configure("areg", number, "rbytes", slot_bytes)
            for level, step in enumerate(steps):
                if step:
                    self._configure("areg", number, f"step{level}", step)
        return number

    def coordinate(self, value: Linear) -> int:
        """Return the register that holds a coordinate."""
        if value.offset == 0 and not any(value.coeffs):
            return NO_REGISTER
        return self.register("DRAM", value)

    def descriptor(self, kind: str, wanted: dict[str, int | float | str]) -> int:
        """Return a descriptor that holds ``wanted`` (other fields 0), writing only the fields that differ."""
        index, known = self._caches[kind].get(tuple(sorted(wanted.items())))
        if known:
            return index
        held = self._held.get((kind, index))
        for item in isa.DESCRIPTOR_BY_NAME[kind].fields:
            zero: int | str = item.values[0] if item.kind is isa.Kind.ENUM else 0
            value = wanted.get(item.name, zero)
            untouched = held is None and (not self._cleared or item.name == next(iter(wanted)))
            if value != (held or {}).get(item.name, zero) or untouched:
                self._configure(kind, index, item.name, value)
        self._held[kind, index] = dict(wanted)
        return index

    def _configure(self, kind: str, index: int, name: str, value: int | float | str) -> None:
        self._write(Word("cfg", h2.configuration(kind, index, name, value)))

    def _write(self, word: Word) -> None:
        self.words.append(word)
        self.total += 1
