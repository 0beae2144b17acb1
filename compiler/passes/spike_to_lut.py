"""Gives every op of the training graph to an engine, with explicit formats and orders of summation."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects import func
from xdsl.dialects.builtin import FunctionType, ModuleOp, StringAttr
from xdsl.ir import Block, BlockArgument, Operation, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.diagnostics import placed
from h2learn.compiler.mapping.fixed_point import FixedPoint
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.dialects.common import get_io, precision, source_of
from h2learn.dialects.lut.attributes import shape_of
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.interpreter import main_block

from .lut_arguments import argument_type
from .lut_backward import BACKWARD
from .lut_context import LutContext, NoLoweringError
from .lut_forward import FORWARD
from .lut_scan import lower_scan
from .step_parts import choose_parts

LAYERS = FORWARD | BACKWARD
LOWERINGS = LAYERS | {spike.ScanOp: lambda context, op: lower_scan(context, op, LAYERS)}


@dataclass(frozen=True)
class SpikeToLutPass(ModulePass):
    """Assign engines, formats, fan-in and blocks of summation for machine ``arch`` (a name or the path of a TOML file).

    ``limits`` caps tile sizes, as text such as ``rows=4,k=8``: tile sizes decide where sums are split.
    """

    name = "h2l-spike-to-lut"

    arch: str = "h2l-v0"
    limits: str = ""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Replace ``@main``; raises H2LearnError that lists every op without a lowering."""
        machine = load_machine(self.arch)
        source = main_block(op)
        limits = TileLimits.parse(self.limits)
        context = LutContext(Block(), machine, limits, precision(op), _time_steps(source))
        if any(entry.role == "loss" for entry in get_io(op)):
            choose_parts(context, op, source)
        for argument, entry in zip(source.args, get_io(op), strict=False):
            if entry.bits:
                context.numbers[argument] = FixedPoint(0, (1 << entry.bits) - 1, entry.bits)
        problems = _lower_arguments(context, source, [entry.role for entry in get_io(op)])
        for inner in source.ops:
            problem = _lower(context, inner)
            if problem is not None:
                problems.append(problem)
        _report(problems)
        op.attributes["h2learn.arch"] = StringAttr(machine.name)
        _replace_main(source, context.block)


@dataclass(frozen=True)
class _Problem:
    """An op (or argument) that cannot be lowered, and why."""

    where: str
    reason: str


def _time_steps(block: Block) -> int:
    return next((int(op.time_steps.value.data) for op in block.ops if isinstance(op, spike.RepeatOp)), 1)


def _lower_arguments(context: LutContext, source: Block, roles: list[str]) -> list[_Problem]:
    problems = []
    for argument, role in zip(source.args, roles, strict=False):
        try:
            type_ = argument_type(argument, role, context.dtype)
        except NoLoweringError as error:
            problems.append(_Problem("", f"argument {argument.name_hint or argument.index}: {error}"))
            type_ = argument.type
        lowered = context.block.insert_arg(type_, len(context.block.args), argument.location)
        lowered.name_hint = argument.name_hint
        context.values[argument] = lowered
    return problems


def _lower(context: LutContext, op: Operation) -> _Problem | None:
    """Lower one op; what depends on an op without lowering is passed over silently."""
    if any(operand not in context.values for operand in op.operands):
        return None
    lowering = LOWERINGS.get(type(op), _return if isinstance(op, func.ReturnOp) else None)
    if lowering is None:
        return _Problem(source_of(op), f"{op.name}: expected an op of spike or sgrad")
    try:
        with placed(op):
            results = lowering(context, op)
    except NoLoweringError as error:
        return _Problem(source_of(op), f"{op.name}: {error}")
    for old, new in zip(op.results, results, strict=True):
        if new.name_hint is None and not isinstance(new, BlockArgument):
            new.name_hint = old.name_hint
        context.values[old] = new
    return None


def _return(context: LutContext, op: Operation) -> list[SSAValue]:
    values = [context.of(operand) for operand in op.operands]
    for old, new in zip(op.operands, values, strict=True):
        if _elements(old) != _elements(new):
            raise NoLoweringError("expected a result that exists at every time step, found a repeated one")
    end = func.ReturnOp(*values)
    end.location = op.location
    context.block.add_op(end)
    return []


def _elements(value: SSAValue) -> int:
    count = 1
    for size in shape_of(value.type):
        count *= size
    return count


def _report(problems: list[_Problem]) -> None:
    if not problems:
        return
    lines = "\n".join(f"  {p.where}: {p.reason}" if p.where else f"  {p.reason}" for p in problems)
    count = "1 operation has" if len(problems) == 1 else f"{len(problems)} operations have"
    raise H2LearnError(f"{count} no form on the accelerator", location=problems[0].where or None, excerpt=lines)


def _replace_main(source: Block, block: Block) -> None:
    main = source.parent_op()
    end = block.last_op
    assert isinstance(main, func.FuncOp) and isinstance(end, func.ReturnOp)
    main.body.detach_block(source)
    source.erase()
    main.body.add_block(block)
    main.function_type = FunctionType.from_lists(
        [argument.type for argument in block.args], [value.type for value in end.operands]
    )
