"""The gradient rule of ``spike.scan``: the rules of its body, in a scan that runs the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects.common import source_of
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import real
from h2learn.dialects.spike.scan import captures

from .tape import Gradient, Rule, Tape, shape_of


def differentiate_scan(
    op: spike.ScanOp, gradients: Sequence[Gradient], tape: Tape, rule_of: Callable[[Operation], Rule]
) -> Sequence[Gradient]:
    """Return the gradients of what the scan reads: its inputs, then the values from outside.

    A fed-back value passes its gradient to the step before: the gradient of a yielded value is that of the result plus
    what the argument of the next step received. Parameters stay out of the loop: what a layer of the body received is
    a result of the reversed scan, and its weight gradient one sum over all steps behind it. The scan must yield every
    value of its body (:func:`h2learn.dialects.spike.scan.with_all_values`).
    """
    return _Adjoint(op, tape, rule_of).of(gradients)


class _BodyTape(Tape):
    """Emits adjoints of a body's ops; what they read of the body comes from the results of the forward scan."""

    def __init__(self, block: Block, needed: set[SSAValue], outside: Callable[[SSAValue], SSAValue]) -> None:
        super().__init__(block, needed)
        self._outside = outside

    def emit(self, op: Operation) -> SSAValue:
        """Append ``op`` with operands from outside and return its first result."""
        op.operands = [self._outside(operand) for operand in op.operands]
        return super().emit(op)


class _Adjoint:
    def __init__(self, op: spike.ScanOp, tape: Tape, rule_of: Callable[[Operation], Rule]) -> None:
        self.op, self.tape, self.rule_of = op, tape, rule_of
        self.captured = {value for value in captures(op) if tape.needs(value)}
        self.needed = self._needed()
        self.before: dict[SSAValue, SSAValue] = {}
        self.block = Block()
        self.later: list[BlockArgument] = []
        self.moved: dict[SSAValue, SSAValue] = {}
        self.inner = _BodyTape(self.block, self.needed, self.outside)
        self.sums: dict[SSAValue, SSAValue] = {}

    def of(self, gradients: Sequence[Gradient]) -> list[Gradient]:
        """Emit the reversed scan and the weight gradients behind it."""
        op = self.op
        arriving = [gradient for gradient in gradients if gradient is not None]
        for value, gradient in zip(op.yielded, gradients, strict=True):
            if gradient is not None:
                self.add(value, self.argument(gradient), op)
        self.later = [self.argument(fed) for fed in op.fed_back]
        for value, argument in zip(op.yielded, self.later, strict=False):
            self.add(value, argument, op)
        layers = self.body()
        found = self.close(arriving, [gradient for _, gradients in layers for gradient in gradients])
        of_captured: dict[SSAValue, SSAValue] = {}
        weights = _BodyTape(self.tape.block, self.captured, self.outside)
        for one, of_results in layers:
            received = [None if gradient is None else found[gradient] for gradient in of_results]
            for operand, part in zip(one.operands, self.rule_of(one)(one, received, weights), strict=True):
                if part is not None and operand in self.captured:
                    _accumulate(of_captured, operand, part, weights, one)
        of_inputs = [found.get(self.sums[a]) if a in self.sums else None for a in op.arguments]
        return [*of_inputs, *(of_captured.get(value) for value in captures(op))]

    def body(self) -> list[tuple[Operation, list[Gradient]]]:
        """Emit the adjoints of the body, last op first; return the ops that use parameters and what they received."""
        layers = []
        for one in reversed(list(self.op.body.block.ops)):
            of_results = [self.sums.get(result) for result in one.results]
            if all(gradient is None for gradient in of_results):
                continue
            if not self.captured.isdisjoint(one.operands):
                layers.append((one, of_results))
            if self.needed.isdisjoint(one.operands):
                continue
            for operand, part in zip(one.operands, self.rule_of(one)(one, of_results, self.inner), strict=True):
                if part is not None and operand in self.needed:
                    self.add(operand, part, one)
        return layers

    def close(self, arriving: Sequence[SSAValue], received: Sequence[Gradient]) -> dict[SSAValue, SSAValue]:
        """End the reversed scan and return, for what its body yields, its results."""
        op = self.op
        if any(fed not in self.sums for fed in op.fed_back):
            raise H2LearnError("expected a use of every fed-back value", location=source_of(op) or None)
        yielded = [self.fed(number) for number in range(len(op.fed_back))]
        wanted = [*(self.sums.get(argument) for argument in op.arguments), *received]
        values = {value: self.moved.get(value, value) for value in wanted if value is not None}
        yielded += [value for value in dict.fromkeys(values.values()) if value not in yielded]
        self.block.add_op(spike.YieldOp(yielded, location=op.location))
        back = spike.ScanOp(arriving, self.block, reverse=op.reverse is None, location=op.location)
        self.tape.block.add_op(back)
        return {value: back.outputs[yielded.index(inside)] for value, inside in values.items()}

    def fed(self, number: int) -> SSAValue:
        """Return the value to feed back for fed-back argument ``number`` of the forward scan.

        A layer there does not care whether it comes before or after the step in time: what it received is fed back,
        and the layer moves to the start of the next step. That is what the accelerator does.
        """
        value = self.sums[self.op.fed_back[number]]
        layer = value.owner
        if not isinstance(layer, sgrad.InputGradientOp) or len(list(value.uses)) > 0:
            return value
        received = layer.gradient
        old = self.later[number]
        argument = self.block.insert_arg(received.type, old.index, self.op.location)
        self.block.detach_op(layer)
        self.block.insert_op_before(layer, next(iter(self.block.ops)))
        layer.operands[0] = argument
        old.replace_all_uses_with(value)
        self.block.erase_arg(old)
        self.moved[old] = value
        return received

    def add(self, value: SSAValue, part: SSAValue, op: Operation) -> None:
        """Add to the gradient of a value of the body."""
        _accumulate(self.sums, value, part, self.inner, op)

    def argument(self, like: SSAValue) -> BlockArgument:
        """Add an argument to the reversed body: a gradient of the shape of ``like``."""
        return self.block.insert_arg(real(shape_of(like)), len(self.block.args), self.op.location)

    def outside(self, value: SSAValue) -> SSAValue:
        """Return the value outside that holds, over all steps, a value of the forward body."""
        op = self.op
        if value in op.fed_back:
            if value not in self.before:
                result = op.outputs[op.fed_back.index(value)]
                self.before[value] = self.tape.emit(spike.DelayOp(result, [1], location=op.location))
            return self.before[value]
        if value in op.arguments:
            return op.inputs[op.arguments.index(value)]
        return op.outputs[op.yielded.index(value)] if value in op.yielded else value

    def _needed(self) -> set[SSAValue]:
        """Return the values of the body that a parameter influences."""
        op = self.op
        needed: set[SSAValue] = {a for a, value in zip(op.arguments, op.inputs, strict=True) if self.tape.needs(value)}
        count = -1
        while count != len(needed):
            count = len(needed)
            for one in op.body.block.ops:
                if not needed.union(self.captured).isdisjoint(one.operands):
                    needed.update(one.results)
            needed.update(fed for value, fed in zip(op.yielded, op.fed_back, strict=False) if value in needed)
        return needed


def _accumulate(sums: dict[SSAValue, SSAValue], value: SSAValue, part: SSAValue, tape: Tape, op: Operation) -> None:
    before = sums.get(value)
    sums[value] = part if before is None else tape.emit(sgrad.AddOp(before, part, location=op.location))
