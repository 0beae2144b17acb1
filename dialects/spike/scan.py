"""Feedback over time: ``spike.scan``, the value one step earlier, and what passes need to take a scan apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from xdsl.dialects.builtin import DenseArrayBase, LocationAttr, TensorType, f32, i1
from xdsl.ir import Block, Operation, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from ..feedback import FeedbackEnd, FeedbackOp
from .base import InferredOp, Properties, Tensor, expect_element, expect_rank, int_list, ints


@irdl_op_definition
class YieldOp(FeedbackEnd):
    """The results of a scan's body."""

    name = "spike.yield"


@irdl_op_definition
class ScanOp(FeedbackOp):
    """Layers with feedback over all time steps: a recurrent layer, a cycle of layers. See :class:`FeedbackOp`.

    Parameters are used from outside.
    """

    name = "spike.scan"
    END: ClassVar[type[FeedbackEnd]] = YieldOp


@irdl_op_definition
class DelayOp(InferredOp):
    """``result[t] = x[t - steps]``, 0 (no spike) before step 0; ``steps`` holds one number or one per channel."""

    name = "spike.delay"

    x = operand_def(TensorType)
    result = result_def(TensorType)
    steps = prop_def(DenseArrayBase)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, steps: Sequence[int], *, location: LocationAttr) -> None:
        super().__init__([x], {"steps": ints(steps)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Keep the type."""
        expect_element("x", operands[0], f32, i1)
        check_delay(properties, expect_rank("x", operands[0], 3, 5)[-1])
        return [operands[0]]


def check_delay(properties: Properties, channels: int) -> tuple[int, ...]:
    """Return the steps of a delay; raises VerifyException unless there is one number >= 0, or one per channel."""
    steps = int_list(properties, "steps")
    if len(steps) not in (1, channels):
        raise VerifyException(f"expected 1 or {channels} numbers as steps, found {len(steps)}")
    return steps


def reads(op: Operation) -> list[SSAValue]:
    """Return what an op reads: its operands and, of a scan, the values that the body uses from outside."""
    return [*op.operands, *(captures(op) if isinstance(op, ScanOp) else ())]


def captures(op: ScanOp) -> list[SSAValue]:
    """Return the values from outside that the body of a scan uses, in the order of their first use."""
    inside = set(op.body.block.args).union(*(inner.results for inner in op.body.walk()))
    used = (operand for inner in op.body.walk() for operand in inner.operands)
    return list(dict.fromkeys(value for value in used if value not in inside))


def with_all_values(op: ScanOp) -> ScanOp:
    """Replace a scan by one that also yields every other value of its body, and return it."""
    more = (result for inner in op.body.block.ops for result in inner.results)
    return _yielding(op, list(dict.fromkeys((*op.yielded, *more))), [*range(len(op.outputs))])


def without_unused_values(op: ScanOp) -> ScanOp:
    """Replace a scan by one that yields only what is fed back or used outside, and return it."""
    kept = [n for n, result in enumerate(op.outputs) if n < len(op.fed_back) or result.first_use is not None]
    found = _yielding(op, [op.yielded[n] for n in kept], kept)
    for inner in list(reversed(list(found.body.block.ops))):
        if inner.results and all(result.first_use is None for result in inner.results):
            found.body.block.erase_op(inner)
    return found


def scans(block: Block) -> Iterator[ScanOp]:
    """Yield the scans among the ops of a block."""
    for op in list(block.ops):
        if isinstance(op, ScanOp):
            yield op


def _yielding(op: ScanOp, values: Sequence[SSAValue], origin: Sequence[int]) -> ScanOp:
    """Replace a scan by one that yields ``values``, the first of which are the results ``origin`` of the old one."""
    body, outer = op.body.detach_block(0), op.parent_block()
    end = body.last_op
    assert outer is not None and end is not None
    location = end.location
    body.erase_op(end)
    body.add_op(YieldOp(values, location=location))
    new = ScanOp(op.inputs, body, reverse=op.reverse is not None, location=op.location)
    outer.insert_op_before(new, op)
    for fresh, n in zip(new.outputs, origin, strict=False):
        fresh.name_hint = op.outputs[n].name_hint
        op.outputs[n].replace_all_uses_with(fresh)
    outer.erase_op(op)
    return new
