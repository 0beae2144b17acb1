"""``h2l-tile-to-h2``: one op per machine instruction.

Decided here: DRAM addresses, address registers and their strides, descriptors, semaphores. Registers and descriptors
are set up in front of each stage; whatever still holds the right contents is not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import ClassVar

import numpy as np
from xdsl.context import Context
from xdsl.dialects import builtin, func
from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.object_file import DRAM_BASE, align_page
from h2learn.compiler.mapping.placement import aligned
from h2learn.compiler.mapping.registers import SemaphorePlan, assign_semaphores, least_semaphores
from h2learn.compiler.mapping.streams import JOINED, stream_order
from h2learn.compiler.passes.h2_encoding import ENCODINGS
from h2learn.compiler.passes.h2_setup import NO_REGISTER, Ring, SetupTable, Word
from h2learn.compiler.passes.h2_transfer import Linear, linear, transfer
from h2learn.compiler.passes.tile_layout import (
    buffer_of,
    dimension_bytes,
    enclosing_loops,
    first_tensor,
    is_section,
    is_unit,
    placed_address,
    placed_bytes,
    root_tensor,
    slot_stride,
    stack_of,
    stages_of,
)
from h2learn.compiler.passes.token_uses import token_uses
from h2learn.dialects import tile
from h2learn.dialects.common import get_io
from h2learn.dialects.h2 import ops as h2

SETUP_SYMBOL = "setup"
_SECTION_OF_ROLE = {"parameter": "data"}


@dataclass(frozen=True)
class TileToH2Pass(ModulePass):
    """Lower placed and tokened ``tile`` code to the flat instruction list."""

    name: ClassVar[str] = "h2l-tile-to-h2"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Replace ``@main`` by instructions and attach the symbols."""
        del ctx
        main = next(f for f in op.body.block.ops if isinstance(f, func.FuncOp))
        names, symbols = _symbols(op, main)
        returned = main.body.block.last_op
        assert isinstance(returned, func.ReturnOp)
        results = [names[root_tensor(value)] for value in returned.arguments]
        arguments = [names[argument] for argument in main.body.block.args]
        writers = _write_streams(main, {value: symbols[name] for value, name in names.items()})
        symbols = _place_table(writers, symbols)
        first, *others = (writers[number].ops for number in _numbers(main))
        forks = [h2.fork(number, ops, main.location) for number, ops in enumerate(others, start=1)]
        replacement = func.FuncOp("main", ((), ()), Region(Block([*forks, *first])))
        replacement.location = main.location
        op.body.block.insert_op_before(replacement, main)
        op.body.block.erase_op(main)
        h2.set_symbols(op, list(symbols.values()), arguments + results)


def _symbols(module: builtin.ModuleOp, main: func.FuncOp) -> tuple[dict[SSAValue, str], dict[str, h2.TensorSymbol]]:
    """Give every tensor a name and a DRAM address: constants, then parameters and their copies, then the rest."""
    block = main.body.block
    declared: list[_Declared] = []
    for argument, entry in zip(block.args, get_io(module), strict=False):
        declared.append((argument, entry.name, _SECTION_OF_ROLE.get(entry.role, "bss"), None))
    for op in block.ops:
        if isinstance(op, tile.TensorOp):
            section = "rodata" if op.rows is not None else "data" if op.shadow is not None else "bss"
            declared.append((op.result, op.label.data.replace(" ", "."), section, op))
    names: dict[SSAValue, str] = {}
    taken: set[str] = set()
    for value, wanted, _, _ in declared:
        name = wanted
        while name in taken:
            name += "_"
        taken.add(name)
        names[value] = name
    shadows = {op.shadow.data: names[value] for value, _, _, op in declared if op is not None and op.shadow is not None}
    symbols: dict[str, h2.TensorSymbol] = {}
    top = DRAM_BASE
    for section in ("rodata", "data", "bss"):
        top = align_page(top)
        for value, wanted, where, op in _side_by_side(declared):
            if where != section:
                continue
            placed = tile.placed_of(value)
            size = placed_bytes(placed)
            contents = _rows(op.rows.data, placed.shape) if op is not None and op.rows is not None else b""
            dtype = "slots" if placed.gblk else "scalars" if wanted == "scalars" else placed.form
            shadow = shadows.get(wanted, "") if op is None else ""
            plane = tile.layout_of(value).plane if op is not None and op.layout is not None else 0
            symbols[names[value]] = h2.TensorSymbol(
                names[value], top, size, section, dtype, placed.shape, shadow, contents, plane
            )
            top += aligned(size)
    return names, symbols


_Declared = tuple[SSAValue, str, str, tile.TensorOp | None]


def _side_by_side(declared: Sequence[_Declared]) -> list[_Declared]:
    """Return what is declared with the members of a stack behind its first, in their order."""
    known = {item[0]: item for item in declared}
    ordered: dict[SSAValue, _Declared] = {}
    for value, item in known.items():
        stack = stack_of(value)[0].owner
        for member in stack.members if isinstance(stack, tile.StackOp) else (value,):
            ordered.setdefault(member, known[member])
        ordered.setdefault(value, item)
    return list(ordered.values())


def _write_streams(main: func.FuncOp, symbols: dict[SSAValue, h2.TensorSymbol]) -> list[_Writer]:
    """Write the program of every stream; what has no stream of its own is one."""
    bodies = [op.body.block for op in main.body.block.ops if isinstance(op, tile.StreamOp)] or [main.body.block]
    sections = [[token_uses(block) for block in _sections(body)] for body in bodies]
    shared: dict[int, int] = {}
    for uses in sections:
        for section in uses:
            for token in [token for token, use in section.items() if not (use.producer and use.consumer)]:
                del section[token]
                shared.setdefault(token, len(shared))
    kept = [_kept(body) for body in bodies]
    for token in (op.token.data for posts in kept for op in posts):
        shared.setdefault(token, len(shared))
        for section in (section for uses in sections for section in uses):
            section.pop(token, None)
    available = list(range(len(shared), isa.SEMAPHORES))
    least = [least_semaphores(uses) for uses in sections]
    writers: list[_Writer] = []
    for number, (body, uses) in enumerate(zip(bodies, sections, strict=True)):
        spare = len(available) - sum(least[number:])
        mine = least[number] + max(0, spare) // (len(bodies) - number)
        plans = assign_semaphores(uses, available[:mine])
        del available[:mine]
        parent = body.parent_op()
        label = parent.label.data.partition(JOINED)[0] if isinstance(parent, tile.StreamOp) else ""
        writers.append(_Writer(symbols, shared, dict(zip(_sections(body), plans, strict=True)), label))
        left = [(op.engine.data, shared[op.token.data], op.count.data) for op in kept[number]]
        writers[-1].program(body, main.location, left)
    return writers


def _numbers(main: func.FuncOp) -> list[int]:
    """Return which stream of the function is stream 0, 1, ... of the machine."""
    labels = [op.label.data for op in main.body.block.ops if isinstance(op, tile.StreamOp)]
    return stream_order([label.partition(JOINED)[0] for label in labels]) if labels else [0]


def _sections(body: Block) -> list[Block]:
    """Return the blocks of a stream that hold stages: that of its loop over groups, and its own."""
    return [*(op.body.block for op in body.ops if isinstance(op, tile.ForOp) and is_section(op)), body]


def _place_table(writers: Sequence[_Writer], symbols: dict[str, h2.TensorSymbol]) -> dict[str, h2.TensorSymbol]:
    """Insert the ``setup`` of each stage; its words lie behind the constants, and all other tensors move up."""
    constants = [s.address + s.size for s in symbols.values() if s.section == "rodata"]
    start = aligned(max(constants, default=DRAM_BASE))
    size = sum(writer.table.total for writer in writers) * isa.WORD_BYTES
    move = align_page(start + size) - align_page(max(constants, default=DRAM_BASE))
    address = start
    for writer in writers:
        inserted: list[tuple[int, Operation]] = []
        for position, words, location, place in writer.setups:
            for word in words:
                if word.moves:
                    word.fields["base"] += move
            op = h2.setup(address, [(word.mnemonic, word.fields) for word in words], location)
            op.attributes[h2.LOOPS_ATTRIBUTE] = builtin.StringAttr(place)
            inserted.append((position, op))
            address += len(words) * isa.WORD_BYTES
        for position, setup in reversed(inserted):
            writer.ops.insert(position, setup)
    moved = {name: s if s.section == "rodata" else replace(s, address=s.address + move) for name, s in symbols.items()}
    if size:
        name = next(n for n in (f"{SETUP_SYMBOL}{'_' * k}" for k in range(len(symbols) + 1)) if n not in symbols)
        moved[name] = h2.TensorSymbol(name, start, size, "rodata", "u8", (size,))
    return moved


def _rows(rows: tile.Rows, shape: Sequence[int]) -> bytes:
    array = np.zeros(shape, dtype="<f4")
    for target, values in zip(array, rows, strict=True):
        target[...] = values
    return array.tobytes()


def _kept(body: Block) -> list[tile.SignalOp]:
    """Return the posts in front of all stages: of tokens whose credits go on from stage to stage."""
    found: list[tile.SignalOp] = []
    for op in body.ops:
        if isinstance(op, tile.SignalOp):
            found.append(op)
        elif isinstance(op, tile.ForOp | tile.StageOp | tile.WaitOp):
            break
    return found


class _Writer:
    """Appends instructions; keeps what address registers and descriptors hold."""

    def __init__(
        self,
        symbols: dict[SSAValue, h2.TensorSymbol],
        shared: dict[int, int],
        plans: dict[Block, SemaphorePlan],
        label: str,
    ) -> None:
        self.ops: list[Operation] = []
        self.setups: list[tuple[int, list[Word], LocationAttr, str]] = []
        self.table = SetupTable()
        self._symbols = symbols
        self._shared = shared
        self._plans = plans
        self._plan = SemaphorePlan()
        self._label = label
        self._repeated: dict[Operation, int] = {}
        self._outer = ""
        self._place = ""

    def program(self, body: Block, location: LocationAttr, kept: Sequence[tuple[str, int, int]]) -> None:
        """Write all stages, drain what is left, also of kept tokens, halt."""
        self._section(body)
        self._drain([*self._plan.left, *kept], location)
        self._add("halt", location)

    def _section(self, block: Block) -> None:
        """Write the stages of a block with what stands between them."""
        drained = -1
        number = 0
        for child in block.ops:
            self._plan = self._plans[block]
            if (is_unit(child) or isinstance(child, tile.WaitOp)) and drained < number:
                self._drain(self._plan.drains.get(number, []), child.location)
                drained = number
            if is_unit(child):
                self._unit(child)
                number += len(stages_of(child))
            elif isinstance(child, tile.SignalOp | tile.WaitOp):
                self._token(child)
            elif isinstance(child, tile.ForOp):
                self._loop(child, partial(self._section, child.body.block))
            elif isinstance(child, tile.FenceOp):
                self._drain(self._plan.left, child.location)
                self._add("fence", child.location)
        self._plan = self._plans[block]

    def _loop(self, loop: tile.ForOp, body: Callable[[], None]) -> None:
        """Write a loop around stages: what registers hold at its head is not known."""
        outer, place = self._outer, self._place
        self._add("loop", loop.location, count=loop.trips.data)
        self.table.forget()
        self._outer = f"{outer}{',' if outer else ''} {loop.label.data}"
        self._place = self._between
        body()
        self._add("endl", loop.location)
        self._outer, self._place = outer, place

    def _unit(self, unit: Operation) -> None:
        """Write a stage, or a loop over layers with its stages."""
        if isinstance(unit, tile.StageOp):
            self._stage(unit)
            return
        assert isinstance(unit, tile.ForOp)

        def stages() -> None:
            for child in unit.body.block.ops:
                if isinstance(child, tile.StageOp):
                    self._stage(child)
                elif isinstance(child, tile.SignalOp | tile.WaitOp):
                    self._token(child)

        self._loop(unit, stages)

    @property
    def _between(self) -> str:
        """The place of what stands between the stages of a loop."""
        return f"{self._label}:{self._outer}"

    def _drain(self, drains: Sequence[tuple[str, int, int]], location: LocationAttr) -> None:
        for engine, semaphore, count in drains:
            self._add("wait", location, engine=engine, sem=semaphore, count=count)

    def _add(self, mnemonic: str, location: LocationAttr, **fields: int | str) -> None:
        self._append(h2.build(mnemonic, location, **fields))

    def _append(self, op: Operation) -> None:
        if self._place:
            op.attributes[h2.LOOPS_ATTRIBUTE] = builtin.StringAttr(self._place)
        self.ops.append(op)

    def _token(self, op: tile.SignalOp | tile.WaitOp) -> None:
        mnemonic = "signal" if isinstance(op, tile.SignalOp) else "wait"
        token = op.token.data
        semaphore = self._shared[token] if token in self._shared else self._plan.semaphore[token]
        self._add(mnemonic, op.location, engine=op.engine.data, sem=semaphore, count=op.count.data)

    def _stage(self, stage: tile.StageOp) -> None:
        """Set up the registers of a stage, then write its loops and jobs."""
        self.table.new_stage()
        self._place = f"{stage.label.data}:{self._outer}"
        body: dict[Operation, dict[str, int | str]] = {}
        for op in stage.walk():
            if isinstance(op, tile.LoadOp | tile.StoreOp):
                body[op] = self._copy(op)
            elif isinstance(op, tile.JobOp):
                body[op] = self._job(op)
        if self.table.words:
            self.setups.append((len(self.ops), self.table.words, stage.location, self._place))
        self._block(stage.body.block, body)
        self._place = self._between if self._outer else ""

    def _block(self, block: Block, body: dict[Operation, dict[str, int | str]]) -> None:
        for op in block.ops:
            if isinstance(op, tile.ForOp):
                outer = self._place
                self._add("loop", op.location, count=op.trips.data)
                self._place = f"{outer}{'' if outer.endswith(':') else ','} {op.label.data}"
                self._block(op.body.block, body)
                self._add("endl", op.location)
                self._place = outer
            elif isinstance(op, tile.SignalOp | tile.WaitOp):
                self._token(op)
            elif op in body:
                self._times(op, body[op])

    def _times(self, op: Operation, fields: dict[str, int | str]) -> None:
        """Write an instruction, in a loop where it stands for several."""
        times = self._repeated.get(op, 1)
        if times > 1:
            self._add("loop", op.location, count=times)
        self._add(_mnemonic(op), op.location, **fields)
        if times > 1:
            self._add("endl", op.location)

    def _copy(self, op: tile.LoadOp | tile.StoreOp) -> dict[str, int | str]:
        """Set up a copy and return its instruction fields."""
        plan = transfer(op)
        symbol = self._symbols[first_tensor(op.tensor)]
        inner = (plan.dram_step,) if plan.times > 1 else ()
        dram = Linear(plan.dram.offset + symbol.address, (*plan.dram.coeffs, *inner))
        there = self.table.register("DRAM", dram, moves=symbol.section != "rodata")
        here = self._buffer(op.buffer, op.at.data[0] if op.at is not None else None, op, plan.chip_step)
        self._repeated[op] = plan.times
        y, x = self.table.coordinate(plan.y), self.table.coordinate(plan.x)
        source, target = (there, here) if isinstance(op, tile.LoadOp) else (here, there)
        descriptor = self.table.descriptor("xfer", dict(plan.fields))
        return {"dst": target, "src": source, "y": y, "x": x, "desc": descriptor}

    def _job(self, op: tile.JobOp) -> dict[str, int | str]:
        """Set up a job and return its instruction fields."""
        encoding = ENCODINGS[op.name]
        params = op.parameters()
        unused = tile.unused_roles(op)
        fields: dict[str, int | str] = {}
        for role in op.facts.roles:
            fields[role] = NO_REGISTER if role in unused else self._buffer(op.buffer(role), op.index(role), op)
        for name, index in zip(encoding.coords, op.coords.data, strict=True):
            fields[name] = self.table.coordinate(linear(index, op))
        described = {field: params[name] for field, name in encoding.fields}
        fields["desc"] = self.table.descriptor(encoding.desc, described)
        for name in encoding.extra:
            value = params[name]
            assert not isinstance(value, float)
            fields[name] = value
        if any(field.name == "init" for field in isa.BY_MNEMONIC[encoding.mnemonic].fields):
            loops = [loop.counter for loop in enclosing_loops(op)]
            first = sum(1 << loops.index(counter) for counter in op.first)
            fields["init"] = first if op.carry is None else isa.NEVER_INIT
        return fields

    def _buffer(
        self, value: SSAValue, index: tile.Index | None, op: tile.LoadOp | tile.StoreOp | tile.JobOp, inner: int = 0
    ) -> int:
        """Return the register that holds the address of (the leading index of) a buffer.

        ``inner``: bytes from one iteration to the next of a loop around the instruction alone.
        """
        alloc, placed = buffer_of(value)
        step = dimension_bytes(placed)[0] if index is not None else 0
        place = linear(index or (0, ()), op)
        address = Linear(placed_address(alloc) + place.offset * step, (*(c * step for c in place.coeffs), inner))
        ring: Ring = ()
        if alloc.slots.data > 1:
            trips = [loop.trips.data for loop in enclosing_loops(alloc)]
            steps = tuple(prod(trips[n + 1 :]) % alloc.slots.data for n in range(len(trips)))
            ring = (alloc.slots.data, slot_stride(alloc), steps)
        return self.table.register(alloc.memory.data, address, ring)


def _mnemonic(op: Operation) -> str:
    if isinstance(op, tile.LoadOp):
        return "ld"
    return "st" if isinstance(op, tile.StoreOp) else ENCODINGS[op.name].mnemonic
