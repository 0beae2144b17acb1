"""Dropout: what a network says (an identity outside training), and what a training step does."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import FloatAttr, IntegerAttr, LocationAttr, TensorType, UnitAttr, f32, i1
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.coding import Dropout

from .base import (
    SCALARS,
    InferredOp,
    Properties,
    Tensor,
    expect_element,
    expect_rank,
    expect_type,
    float_value,
    int_value,
    integer,
    number,
    real,
)


@irdl_op_definition
class DropoutOp(InferredOp):
    """Spikes or reals ``[(T,)N,...]`` as reals, of which training drops some; see :class:`Dropout`."""

    name = "spike.dropout"

    x = operand_def(TensorType)
    result = result_def(TensorType)
    probability = prop_def(FloatAttr)
    stream = prop_def(IntegerAttr)
    every_step = opt_prop_def(UnitAttr)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, what: Dropout, *, location: LocationAttr) -> None:
        properties = {"probability": number(what.probability), "stream": integer(what.stream)}
        super().__init__([x], properties | ({"every_step": UnitAttr()} if what.every_step else {}), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give reals of the same shape."""
        return [_dropped(operands[0], properties)]


@irdl_op_definition
class DropoutTrainOp(InferredOp):
    """Dropout in a training step: 0 or ``x / (1 - probability)``; its own adjoint, which draws the same numbers."""

    name = "spike.dropout_train"

    x = operand_def(TensorType)
    scalars = operand_def(TensorType)
    result = result_def(TensorType)
    probability = prop_def(FloatAttr)
    stream = prop_def(IntegerAttr)
    every_step = opt_prop_def(UnitAttr)

    assembly_format = "$x `,` $scalars attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, scalars: SSAValue, op: DropoutOp | DropoutTrainOp) -> None:
        super().__init__([x, scalars], dict(op.properties), op.location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give reals of the same shape."""
        expect_type("scalars", operands[1], SCALARS)
        return [_dropped(operands[0], properties)]


def dropout_of(op: DropoutOp | DropoutTrainOp | Properties) -> Dropout:
    """Return what an op (or its properties) drops; raises VerifyException when that makes no sense."""
    p = op.properties if isinstance(op, DropoutOp | DropoutTrainOp) else op
    probability = float_value(p, "probability")
    if not 0 <= probability < 1:
        raise VerifyException(f"expected a probability from 0 to below 1, found {probability}")
    return Dropout(probability, int_value(p, "stream", 0), every_step="every_step" in p)


def _dropped(x: Tensor, properties: Properties) -> Tensor:
    expect_element("x", x, f32, i1)
    shape = expect_rank("x", x, 2, 3, 4, 5)
    if dropout_of(properties).every_step and len(shape) not in (3, 5):
        raise VerifyException(f"expected a value over time to draw for every step, found {x}")
    return real(shape)
