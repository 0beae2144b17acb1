"""``h2l-share-stages``: equal layers share their stages, in a loop over layers, and their tensors lie side by side.

Which stages are equal and how their tensors must lie is found by ``mapping/repeats.py``. Tensors of the program itself
that nobody but copies refers to, also by views and repetitions, become one tensor with a leading dimension; arguments,
results and storage copies keep their names and are stacked.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin, func
from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn import isa
from h2learn.compiler.mapping.repeats import Families, Repeat, Step, find_repeats
from h2learn.compiler.passes.stage_builder import Affine, number_counters
from h2learn.compiler.passes.tile_layout import enclosing_loops, insert_before, root_tensor
from h2learn.dialects import tile
from h2learn.dialects.common import get_io, source_of

DECLARATIONS = (tile.TensorOp, tile.StackOp, tile.ViewOp, tile.RepeatOp)


@dataclass(frozen=True)
class ShareStagesPass(ModulePass):
    """Replace runs of equal stages by loops over layers."""

    name: ClassVar[str] = "h2l-share-stages"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Rewrite the stages and declarations of ``@main``."""
        del ctx
        main = next(f for f in op.body.block.ops if isinstance(f, func.FuncOp))
        block = main.body.block
        runs = _runs(op)
        steps = [[_step(stage) for stage in run] for run in runs]
        kinds: dict[Hashable, Hashable] = {}
        for argument, entry in zip(block.args, get_io(op), strict=False):
            kinds[argument] = entry.role, argument.type
        repeats, families = find_repeats(steps, lambda name: kinds.get(name) or _kind(name))
        layout = _Layout(block, families)
        for run, names, found in zip(runs, steps, repeats, strict=True):
            for repeat in found:
                _fold(run, names, repeat, layout)
        layout.finish()


def _runs(module: builtin.ModuleOp) -> list[list[tile.StageOp]]:
    """Return the stages that follow each other with nothing but declarations in between."""
    runs: list[list[tile.StageOp]] = []
    before: Operation | None = None
    for op in module.walk():
        if not isinstance(op, tile.StageOp):
            continue
        above = op.prev_op
        while isinstance(above, DECLARATIONS):
            above = above.prev_op
        if above is None or above is not before:
            runs.append([])
        runs[-1].append(op)
        before = op
    return runs


def _kind(name: Hashable) -> Hashable:
    """Return what tensors of one family have in common."""
    op = name.owner if isinstance(name, SSAValue) else None
    assert isinstance(op, tile.TensorOp)
    return op.rows is not None, op.shadow is not None, op.result.type


def _step(stage: tile.StageOp) -> Step:
    names: list[Hashable] = []
    numbers: dict[SSAValue, int] = {}
    deepest = 0

    def operand(value: SSAValue) -> Hashable:
        if not isinstance(value.type, tile.TensorType):
            return numbers.get(value, value)
        names.append(root_tensor(value))
        return value.type, root_tensor(value).type, type(value.owner)

    def form(block: Block, depth: int) -> Hashable:
        nonlocal deepest
        deepest = max(deepest, depth)
        found: list[Hashable] = []
        for argument in block.args:
            numbers[argument] = len(numbers)
        for op in block.ops:
            properties = tuple(sorted(op.properties.items()))
            operands = tuple(operand(value) for value in op.operands)
            for result in op.results:
                numbers[result] = len(numbers)
            inside = tuple(form(region.block, depth + 1) for region in op.regions)
            found.append((op.name, properties, operands, tuple(r.type for r in op.results), inside))
        return tuple(found)

    whole = stage.part, form(stage.body.block, len(enclosing_loops(stage)) + 1)
    simple = all(_is_simple(op.tensor) for op in stage.walk() if isinstance(op, tile.CopyOp))
    # a copy of several planes may become a loop of its own
    return Step(whole if simple and deepest < isa.MAX_LOOP_DEPTH else None, tuple(names))


def _is_simple(tensor: SSAValue) -> bool:
    """Whether a tensor is a root, or one view or repetition of it."""
    owner = tensor.owner
    return not isinstance(owner, tile.ViewOp | tile.RepeatOp) or root_tensor(tensor) is owner.source


def _fold(run: Sequence[tile.StageOp], steps: Sequence[Step], repeat: Repeat, layout: _Layout) -> None:
    """Keep the stages of the first iteration, as the body of a loop over layers."""
    loop = tile.ForOp("layer", repeat.count)
    insert_before(run[repeat.first], loop)
    for number in range(repeat.first, repeat.first + repeat.period):
        turns = range(number, repeat.end, repeat.period)
        stage = run[number]
        copies = [op for op in stage.walk() if isinstance(op, tile.CopyOp)]
        for op, row in zip(copies, zip(*(steps[turn].names for turn in turns), strict=True), strict=True):
            if row[0] != row[1]:
                layout.move(op, row, loop.counter)
        first, last = _ends([run[turn] for turn in turns])
        stage.label = builtin.StringAttr(_joined(first.label.data, last.label.data))
        location: LocationAttr = first.location
        _detach(stage)
        loop.body.block.add_op(stage)
        for inside in stage.walk():
            inside.location = location
    loop.location = next(iter(loop.body.block.ops)).location
    for stage in run[repeat.first + repeat.period : repeat.end]:
        _erase(stage)


def _ends(stages: Sequence[tile.StageOp]) -> tuple[tile.StageOp, tile.StageOp]:
    """Return the stages of the first and of the last layer in the order of the source."""

    def place(stage: tile.StageOp) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in source_of(stage).split(":")]

    ordered = sorted(stages, key=place)
    return ordered[0], ordered[-1]


def _joined(first: str, last: str) -> str:
    """Return the label of a shared stage: ``forward a1 to a4`` for ``forward a1`` and ``forward a4``."""
    shared = 0
    for one, other in zip(first.split(), last.split(), strict=False):
        if one != other:
            break
        shared += 1
    rest = " ".join(last.split()[shared:])
    return f"{first} to {rest}" if rest else first


class _Layout:
    """Families as values: one tensor or a stack, and views and repetitions of a stack."""

    def __init__(self, block: Block, families: Families) -> None:
        self._block = block
        self._families = families
        self._values: dict[Hashable, SSAValue] = {}
        self._shaped: dict[tuple[SSAValue, type[Operation], tuple[int, ...]], SSAValue] = {}
        self._merged: list[Sequence[SSAValue]] = []
        for members in families.all():
            self._values[members[0]] = self._declare([name for name in members if isinstance(name, SSAValue)])

    def _declare(self, members: Sequence[SSAValue]) -> SSAValue:
        first = members[0].owner
        op: tile.TensorOp | tile.StackOp
        if _kind_is_plain(first) and all(_only_copied(member) for member in members):
            assert isinstance(first, tile.TensorOp)
            placed = tile.placed_of(members[0])
            shape = (len(members), *placed.shape)
            op = tile.TensorOp(f"{first.label.data} x{len(members)}", tile.tensor_type(placed.form, shape, placed.gblk))
            self._merged.append(members)
        else:
            op = tile.StackOp(members)
        if isinstance(first, Operation):
            op.location = first.location
        self._block.add_op(op)
        return op.results[0]

    def move(self, op: tile.CopyOp, row: Sequence[Hashable], counter: SSAValue) -> None:
        """Let a copy refer to one tensor of ``row`` after the other as ``counter`` goes on."""
        first, start = self._families.place(row[0])
        step = self._families.place(row[1])[1] - start
        self._index(op, self._values[first], start, (step,), [counter])

    def _index(
        self, op: tile.CopyOp, whole: SSAValue, start: int, steps: tuple[int, ...], counters: Sequence[SSAValue]
    ) -> None:
        """Let a copy refer to member ``start`` plus ``steps`` times ``counters`` of a family."""
        owner = op.tensor.owner
        at = 1 if isinstance(owner, tile.RepeatOp) else 0
        starts = [_affine(index, op) for index in op.window.data]
        starts.insert(at, Affine(start, tuple(zip(counters, steps, strict=True))))
        sizes = list(op.sizes.data)
        sizes.insert(at, 1)
        places = [] if op.index is None else [_affine(op.index, op)]
        ivs, (window, place) = number_counters([starts, places])
        if isinstance(owner, tile.ViewOp | tile.RepeatOp):
            whole = self._shape(owner, whole)
        new = type(op)(whole, op.buffer, ivs, window, sizes, place[0] if place else None)
        new.location = op.location
        insert_before(op, new)
        _erase(op)

    def _shape(self, owner: tile.ViewOp | tile.RepeatOp, whole: SSAValue) -> SSAValue:
        """Return the view or repetition of a whole family that corresponds to one of a member."""
        shape = tile.placed_of(owner.result).shape
        count = tile.placed_of(whole).shape[0]
        key = (whole, type(owner), shape)
        if key not in self._shaped:
            new = (
                tile.ViewOp(whole, (count, *shape))
                if isinstance(owner, tile.ViewOp)
                else tile.RepeatOp(whole, shape[0])
            )
            new.location = owner.location
            self._block.add_op(new)
            self._shaped[key] = new.result
        return self._shaped[key]

    def finish(self) -> None:
        """Let the copies outside of loops refer to the families, drop what nobody uses, put declarations in front."""
        for members in self._merged:
            for member in members:
                first, number = self._families.place(member)
                shaped = [user for user in _users(member) if isinstance(user, tile.ViewOp | tile.RepeatOp)]
                for copy in [user for op in shaped for user in _users(op.result)] + _users(member):
                    if isinstance(copy, tile.CopyOp):
                        self._index(copy, self._values[first], number, (), [])
                for op in shaped:
                    _erase(op)
                assert isinstance(member.owner, tile.TensorOp)
                _erase(member.owner)
        declared = [op for op in self._block.ops if isinstance(op, DECLARATIONS)]
        for op in [
            op for op in declared if isinstance(op, tile.ViewOp | tile.RepeatOp) and op.result.first_use is None
        ]:
            declared.remove(op)
            _erase(op)
        rest = next(op for op in self._block.ops if not isinstance(op, DECLARATIONS))
        rank = (tile.TensorOp, tile.StackOp, (tile.ViewOp, tile.RepeatOp))
        for kind in rank:
            for declaration in declared:
                if isinstance(declaration, kind):
                    _detach(declaration)
                    insert_before(rest, declaration)


def _affine(index: tile.Index, op: tile.CopyOp) -> Affine:
    return Affine(index[0], tuple((iv, coeff) for iv, coeff in zip(op.ivs, index[1], strict=False) if coeff))


def _kind_is_plain(op: Operation | Block) -> bool:
    """Whether a tensor is one of the program itself that starts as zeros."""
    return isinstance(op, tile.TensorOp) and op.rows is None and op.shadow is None


def _users(value: SSAValue) -> list[Operation]:
    return [use.operation for use in value.uses]


def _only_copied(tensor: SSAValue) -> bool:
    """Whether nobody refers to a tensor but copies, of the tensor or of one view or repetition of it."""
    return all(
        all(isinstance(copy, tile.CopyOp) for copy in _users(user.result))
        if isinstance(user, tile.ViewOp | tile.RepeatOp)
        else isinstance(user, tile.CopyOp)
        for user in _users(tensor)
    )


def _detach(op: Operation) -> None:
    assert op.parent is not None
    op.parent.detach_op(op)


def _erase(op: Operation) -> None:
    assert op.parent is not None
    op.parent.erase_op(op)
