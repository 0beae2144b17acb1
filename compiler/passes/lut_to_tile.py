"""``h2l-lut-to-tile``: every ``lut`` op becomes a stage of loops over tiles with buffers in named memories.

Decided here: tile sizes, loop order, what is fused into one stage (a convolution and the neurons that alone read it),
what is loaded where and kept for how long. Optimizer stages come last, because they overwrite the parameters in place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin, func
from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.diagnostics import placed
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.repeats import bring_together, equal_first
from h2learn.compiler.mapping.streams import (
    BACKWARD,
    DEFAULT_OVERLAP,
    ENTRY,
    FORWARD,
    HEAD,
    JOINED,
    OPTIMIZER,
    UPDATE,
    streams_of,
)
from h2learn.compiler.passes import (
    convolution_stages,
    learned_stages,
    loss_stages,
    normalisation_stages,
    optimizer_step,
    random_stages,
    vector_stages,
)
from h2learn.compiler.passes.stage_builder import Affine, StageBuilder
from h2learn.compiler.passes.tile_context import Groups, TileContext, only_user
from h2learn.dialects import lut, tile
from h2learn.dialects.common import apart_of, get_io, groups_of, has_short_jobs, head_of, precision, source_of
from h2learn.dialects.lut.normalisation import NormGradOp, NormOp, NormStatsOp, NormSumsOp


@dataclass(frozen=True)
class LutToTilePass(ModulePass):
    """Lower ``lut`` to ``tile`` for machine ``arch`` under the tile limits ``limits`` (``"rows=4,k=8"``)."""

    name: ClassVar[str] = "h2l-lut-to-tile"
    arch: str = "h2l-v0"
    limits: str = ""

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Replace the body of ``@main``; raises H2LearnError for ops without a stage."""
        del ctx
        main = next(f for f in op.body.block.ops if isinstance(f, func.FuncOp))
        body = main.body.block
        io = get_io(op)
        block = Block()
        limits = TileLimits.parse(self.limits)
        context = TileContext(
            StageBuilder(block, limits.slots),
            load_machine(self.arch),
            limits,
            precision(op),
            {arg: entry.name for arg, entry in zip(body.args, io, strict=False)},
            apart=apart_of(op),
            short_jobs=has_short_jobs(op),
        )
        for argument in body.args:
            value = block.insert_arg(tile.tensor_type(*context.form_of(argument.type)), len(block.args))
            value.location = argument.location
            value.name_hint = tile.name_hint(context.names.get(argument, ""))
            context.values[argument] = value
        schedule = _Schedule(block, _streams(op, context.limits), groups_of(op))
        ops = list(body.ops)
        _lower_all(context, ops, schedule, _parts(ops, head_of(op), entry=ENTRY in apart_of(op)))
        schedule.finish(main.location)
        returned = body.last_op
        assert isinstance(returned, func.ReturnOp)
        block.add_op(func.ReturnOp(*(context.values[value] for value in returned.arguments)))
        replacement = func.FuncOp(
            main.sym_name.data,
            ([a.type for a in block.args], [context.values[value].type for value in returned.arguments]),
            Region(block),
        )
        replacement.location = main.location
        op.body.block.insert_op_before(replacement, main)
        op.body.block.erase_op(main)


def _scan(ctx: TileContext, op: lut.ScanOp) -> None:
    """Lower a scan of one layer and the neurons behind it, forwards or backwards."""
    for argument, value in zip(op.arguments, op.inputs, strict=True):
        ctx.values[argument] = ctx.values[value]
    match list(op.body.block.ops)[:-1]:
        case [lut.FeConvOp() | lut.BeConvOp() as layer, lut.LifOp()] if layer.operands[0] is op.fed_back[0]:
            convolution_stages.lower_forward(ctx, layer, fed_back=True)
        case [lut.BeGradOp() as layer, lut.GradOp()] if layer.gu is op.fed_back[0]:
            convolution_stages.lower_backward(ctx, layer, fed_back=True)
        case layers:
            raise H2LearnError(
                f"expected feedback through one layer and its neurons, found {', '.join(one.name for one in layers)}",
                location=source_of(op) or None,
            )
    for result, value in zip(op.outputs, op.yielded, strict=True):
        ctx.values[result] = ctx.values[value]


def _lower_all(ctx: TileContext, ops: list[Operation], steps: _Schedule, parts: Mapping[Operation, str]) -> None:
    unknown = [op for op in ops if type(op) not in STAGES and not isinstance(op, func.ReturnOp)]
    if unknown:
        raise H2LearnError(
            f"no stage is known for {', '.join(sorted({op.name for op in unknown}))}",
            location=source_of(unknown[0]) or None,
        )
    front, inside, behind = _places(ctx, ops, grouped=bool(steps.loops))
    inside = _equal_gradients_together(inside, parts)
    steps.stay_in_front(ctx)
    for op in front:
        _lower(ctx, op)
    values, labels = ctx.values, ctx.labels
    for loop in steps.loops or (None,):
        ctx.values, ctx.labels = dict(values), dict(labels)
        for op in inside:
            steps.enter(ctx, parts[op], loop)
            _lower(ctx, op)
    steps.leave(ctx, OPTIMIZER)
    done: set[Operation | None] = set()
    for op in behind:
        if isinstance(op, lut.OptOp):
            _update_in_place(ctx, op)
        elif isinstance(op, lut.WuOp | lut.BeWgtOp):
            step = optimizer_step.step_behind(op.gw)
            if step is not None:
                _update_in_place(ctx, step)
                step = step if convolution_stages.has_room_for(ctx, op, step) else None
            with placed(op):
                convolution_stages.lower_weights(ctx, op, step)
            done.add(step)
        else:
            _lower(ctx, op)
    order: dict[SSAValue, int] = {result: number for number, op in enumerate(ops) for result in op.results}
    updates = sorted((op for op in ops if isinstance(op, lut.OptOp) and op not in done), key=lambda op: order[op.g])
    for number in bring_together([(op.p.type, op.update, op.w is None) for op in updates]):
        op = updates[number]
        with placed(op):
            optimizer_step.lower_optimizer(ctx, op)


def _lower(ctx: TileContext, op: Operation) -> None:
    """Add the stages of ``op``."""
    with placed(op):
        STAGES[type(op)][1](ctx, op)


def _places(
    ctx: TileContext, ops: Sequence[Operation], *, grouped: bool
) -> tuple[list[Operation], list[Operation], list[Operation]]:
    """Return what comes in front of the loops over groups (it works on parameters alone), inside and behind.

    Behind come optimizer steps, what works on gradients of parameters, and weight gradients that wait for all samples.
    Where nothing is ``grouped`` stages are inside.
    """
    front: list[Operation] = []
    inside: list[Operation] = []
    behind: list[Operation] = []
    trained = False
    for op in ops:
        if isinstance(op, lut.OptOp):
            behind.append(op)
        elif isinstance(op, lut.CastOp):
            front.append(op)
        elif isinstance(op, func.ReturnOp):
            continue
        elif grouped and isinstance(op, PARAMETER_OPS) and not vector_stages.has_samples(op):
            (behind if trained else front).append(op)
        elif grouped and isinstance(op, lut.WuOp | lut.BeWgtOp) and convolution_stages.waits_for_batch(ctx, op):
            behind.append(op)
        else:
            inside.append(op)
        trained = trained or isinstance(op, lut.LossOp)
    return front, inside, behind


def _equal_gradients_together(ops: Sequence[Operation], parts: Mapping[Operation, str]) -> list[Operation]:
    """Return the ops with equal weight gradients behind each other, where none of them waits longer for that.

    Layers whose currents are added, such as the last one of a block and a shortcut, have one gradient, and so
    their weight gradients have no order. With every one goes what the update part does behind it.
    """
    units: list[list[Operation]] = []
    gradients: list[SSAValue] = []
    for op in ops:
        if isinstance(op, lut.WuOp):
            units.append([op])
            gradients.append(op.gu)
        elif units and parts.get(op) == UPDATE:
            units[-1].append(op)
    known = set(ops)
    steps: list[tuple[Hashable, Hashable]] = []
    for unit, gradient in zip(units, gradients, strict=True):
        users = {use.operation for op in unit for result in op.results for use in result.uses}
        steps.append((tuple(_form(op) for op in unit), unit[0] if users & known else gradient))
    place = {op: (number, 0) for number, op in enumerate(ops)}
    last = 0
    for rank, op in enumerate(op for number in equal_first(steps) for op in units[number]):
        last = max(last, place[op][0])
        place[op] = last, rank
    return sorted(ops, key=lambda op: place[op])


def _form(op: Operation) -> Hashable:
    """Return what equal ops have in common: all but the names of their values."""
    types = (tuple(value.type for value in values) for values in (op.operands, op.results))
    return (type(op), *types, tuple(sorted(op.properties.items())))


def _parts(ops: Sequence[Operation], head: int, *, entry: bool) -> dict[Operation, str]:
    """Return the part of a training step to which each op belongs; the last ``head`` layers are a part of their own.

    With those goes all that is between their forward and their backward work. What comes before the first look-up is
    the ``entry``, unless the forward part works on parameters first.
    """
    found: dict[Operation, str] = {}
    trained = False
    for op in ops:
        if type(op) in STAGES and not isinstance(op, lut.OptOp):
            found[op] = _part(op, trained)
        trained = trained or isinstance(op, lut.LossOp)
    layers = [op for op in ops if isinstance(op, lut.FeConvOp | lut.BeConvOp)]
    weights = {layer.w for layer in layers[len(layers) - head :]}
    loss = next((n for n, op in enumerate(ops) if isinstance(op, lut.LossOp)), len(ops))
    first = ops.index(layers[-head]) if head else loss
    while head and first and isinstance(ops[first - 1], lut.ConvertOp | lut.CastOp):
        first -= 1
    last = max((n for n, op in enumerate(ops) if isinstance(op, lut.BeGradOp) and op.w in weights), default=len(ops))
    looked_up = next((n for n, op in enumerate(ops) if isinstance(op, lut.FeConvOp)), 0)
    if not entry or any(isinstance(op, PARAMETER_OPS) and not vector_stages.has_samples(op) for op in ops[:first]):
        looked_up = 0
    for number, op in enumerate(ops):
        if found.get(op) == FORWARD and number < looked_up:
            found[op] = ENTRY
        elif head and (
            (found.get(op) == FORWARD and number >= first) or (found.get(op) == BACKWARD and number <= last)
        ):
            found[op] = HEAD
    return found


def _part(op: Operation, trained: bool) -> str:
    """Return the part of a training step to which an op belongs; ``trained``: it stands behind the loss.

    Behind the loss, what only weight gradients need can wait with them.
    """
    part = STAGES[type(op)][0]
    if isinstance(op, lut.ScanOp):
        return BACKWARD if trained else FORWARD
    if part is not None or not trained:
        return part or FORWARD
    users = [use.operation for result in op.results for use in result.uses]
    for_weights = all(type(user) in STAGES and _part(user, trained) in (UPDATE, OPTIMIZER) for user in users)
    return UPDATE if for_weights else BACKWARD


class _Schedule:
    """Where the stages of each part go: into a stream per set of parts, and there into the loops over groups.

    ``sizes`` are those of all groups; groups of one size that follow each other are a loop. Without ``streams`` all
    stages go to the function's block, one after the other, and there are no ``loops``.
    """

    def __init__(self, function: Block, streams: Sequence[tuple[str, ...]], sizes: Sequence[int]) -> None:
        self._function = function
        self._runs = [(size, len(list(run))) for size, run in groupby(sizes)]
        self._streams = [
            _Stream(
                parts,
                tile.ForOp("once", 1),
                tuple(tile.ForOp("group", count) for _, count in self._runs),
                Block(),
            )
            for parts in streams
        ]

    @property
    def loops(self) -> range:
        """The numbers of the loops over groups that each stream has."""
        return range(len(self._runs))

    def enter(self, ctx: TileContext, part: str, number: int | None) -> None:
        """Put the next stages into a loop over groups of the stream that has ``part``."""
        if number is not None:
            loop = self._stream(part).loops[number]
            ctx.builder.go_to(loop.body.block, part)
            size, count = self._runs[number]
            before = sum(other * times for other, times in self._runs[:number])
            ctx.group = Groups(Affine(0, ((loop.counter, 1),)), count, size, before)

    def stay_in_front(self, ctx: TileContext) -> None:
        """Put the next stages in front of the loops over groups of the forward part: they work on parameters alone."""
        if self._streams:
            ctx.builder.go_to(self._stream(FORWARD).front.body.block, FORWARD)
            ctx.group = None

    def leave(self, ctx: TileContext, part: str) -> None:
        """Put the next stages behind the loops over groups of the stream that has ``part``."""
        if self._streams:
            ctx.builder.go_to(self._stream(part).behind, part)
            ctx.group = None

    def finish(self, location: LocationAttr) -> None:
        """Append the streams to the function."""
        for stream in self._streams:
            loops = stream.loops if any(not loop.body.block.is_empty for loop in stream.loops) else ()
            for loop in (*reversed(loops), stream.front):
                if loop is not stream.front or not loop.body.block.is_empty:
                    loop.body.block.add_op(_at(location, tile.FenceOp()))
                    loop.location = location
                    if stream.behind.first_op is None:
                        stream.behind.add_op(loop)
                    else:
                        stream.behind.insert_op_before(loop, stream.behind.first_op)
            self._function.add_op(_at(location, tile.StreamOp(JOINED.join(stream.parts), Region(stream.behind))))

    def _stream(self, part: str) -> _Stream:
        return next(stream for stream in self._streams if part in stream.parts)


@dataclass(frozen=True)
class _Stream:
    """The parts of a stream, what comes in front, its loops over groups and the block of what comes behind."""

    parts: tuple[str, ...]
    front: tile.ForOp
    loops: tuple[tile.ForOp, ...]
    behind: Block


def _at(location: LocationAttr, op: Operation) -> Operation:
    op.location = location
    return op


def _streams(module: builtin.ModuleOp, limits: TileLimits) -> Sequence[tuple[str, ...]]:
    """Return the parts of every stream: nothing for an inference program."""
    if not groups_of(module):
        return ()
    return streams_of(limits.overlap or DEFAULT_OVERLAP, apart_of(module))


def _shadow(ctx: TileContext, parameter: SSAValue) -> SSAValue:
    """Return the storage copy of a parameter; there is one per parameter."""
    name = ctx.names[parameter]
    if parameter not in ctx.shadows:
        form, shape, _ = ctx.form_of(parameter.type)
        assert form == "f32"
        ctx.shadows[parameter] = ctx.builder.tensor(f"{name}.{ctx.dtype}", ctx.dtype, shape, shadow=name)
    return ctx.shadows[parameter]


def _update_in_place(ctx: TileContext, op: lut.OptOp) -> None:
    """Let the results of an optimizer step lie where its operands do."""
    for new, old in zip((op.new_p, *op.new_states), (op.p, *op.states), strict=True):
        ctx.values[new] = ctx.values[old]
    if op.w is not None:
        ctx.values[op.w] = _shadow(ctx, op.p)


def _cast(ctx: TileContext, op: lut.CastOp) -> None:
    ctx.values[op.w] = _shadow(ctx, op.p)


def _neuron(ctx: TileContext, op: lut.LifOp | lut.LiOp) -> None:
    producer = op.current.owner
    fused = isinstance(producer, lut.FeConvOp | lut.BeConvOp) and only_user(op.current, type(op)) is op
    if not fused:
        vector_stages.lower_neuron(ctx, op)


def _gradient(ctx: TileContext, op: lut.GradOp) -> None:
    if op.gs in ctx.values:  # not there when it joined the stage of its input gradient
        vector_stages.lower_gradient(ctx, op)


PARAMETER_OPS = (lut.AddOp, lut.ConvertOp, lut.EmbedOp, lut.ExtractOp, lut.NeuronRowOp, lut.NeuronRowGradOp)
"""Ops that may work on parameters or their gradients."""

Lower = Callable[[TileContext, Any], None]

STAGES: dict[type[Operation], tuple[str | None, Lower]] = {
    lut.FeConvOp: (FORWARD, convolution_stages.lower_forward),
    lut.BeConvOp: (FORWARD, convolution_stages.lower_forward),
    lut.LifOp: (FORWARD, _neuron),
    lut.LiOp: (FORWARD, _neuron),
    lut.NeuronRowOp: (FORWARD, learned_stages.lower_row),
    lut.NeuronRowGradOp: (OPTIMIZER, learned_stages.lower_row_gradient),
    lut.LifConstantsOp: (UPDATE, learned_stages.lower_constants),
    lut.PoolOp: (FORWARD, vector_stages.lower_pool),
    lut.AddOp: (None, vector_stages.lower_elementwise),
    lut.ConvertOp: (None, vector_stages.lower_elementwise),
    lut.GateOp: (None, vector_stages.lower_elementwise),
    lut.ConcatOp: (None, vector_stages.lower_channels),
    lut.SliceOp: (None, vector_stages.lower_channels),
    lut.EmbedOp: (None, vector_stages.lower_sparse_weights),
    lut.ExtractOp: (None, vector_stages.lower_sparse_weights),
    lut.ScanOp: (None, _scan),
    lut.DelayOp: (None, vector_stages.lower_delay),
    lut.DropoutOp: (None, random_stages.lower_dropout),
    lut.RngOp: (FORWARD, random_stages.lower_rng),
    lut.CastOp: (FORWARD, _cast),
    lut.ReadoutOp: (FORWARD, loss_stages.lower_readout),
    lut.LossOp: (FORWARD, loss_stages.lower_loss),
    lut.SpreadOp: (BACKWARD, loss_stages.lower_spread),
    lut.UnpoolOp: (BACKWARD, vector_stages.lower_unpool),
    lut.GradOp: (BACKWARD, _gradient),
    lut.BeGradOp: (BACKWARD, convolution_stages.lower_backward),
    lut.TimeSumOp: (None, vector_stages.lower_time_sum),
    lut.WuOp: (UPDATE, convolution_stages.lower_weights),
    lut.BeWgtOp: (BACKWARD, convolution_stages.lower_weights),
    lut.BiasGradOp: (UPDATE, vector_stages.lower_bias),
    NormStatsOp: (FORWARD, normalisation_stages.lower_statistics),
    NormOp: (FORWARD, normalisation_stages.lower_norm),
    NormSumsOp: (BACKWARD, normalisation_stages.lower_sums),
    NormGradOp: (BACKWARD, normalisation_stages.lower_gradient),
    lut.OptOp: (OPTIMIZER, optimizer_step.lower_optimizer),
}
"""The part of a training step to which each op belongs (None: that depends on its place and users), and its lowering,
which takes the op of its key."""
