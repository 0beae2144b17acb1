"""Batch normalisation of currents: with running statistics, and with those of the batch (training)."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import FloatAttr, IntegerAttr, LocationAttr, TensorType, f32
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

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
class BatchNormOp(InferredOp):
    """``y = (x - mean) / sqrt(variance + eps) * weight + shift`` per channel of currents ``[(T,)N,...,K]``.

    ``mean`` and ``variance`` are the running statistics. ``momentum`` and ``repeats`` matter to training only: how far
    a batch moves them, and how often each value counts in them (the time steps of a current computed once for all).
    """

    name = "spike.batch_norm"

    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    shift = operand_def(TensorType)
    mean = operand_def(TensorType)
    variance = operand_def(TensorType)
    result = result_def(TensorType)
    eps = prop_def(FloatAttr)
    momentum = prop_def(FloatAttr)
    repeats = prop_def(IntegerAttr)

    assembly_format = (
        "$x `,` $weight `,` $shift `,` $mean `,` $variance attr-dict `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        x: SSAValue,
        weight: SSAValue,
        shift: SSAValue,
        mean: SSAValue,
        variance: SSAValue,
        *,
        eps: float,
        momentum: float,
        repeats: int = 1,
        location: LocationAttr,
    ) -> None:
        super().__init__([x, weight, shift, mean, variance], norm_properties(eps, momentum, repeats), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Keep the shape."""
        check_norm(operands, ("weight", "shift", "mean", "variance"), properties)
        return [operands[0]]


@irdl_op_definition
class BatchNormTrainOp(InferredOp):
    """Batch normalisation by the statistics over time, valid samples and positions of the batch itself.

    ``batch_mean`` and ``inverse`` = ``1 / sqrt(biased variance + eps)`` are what the adjoint needs; ``new_mean`` and
    ``new_variance`` (unbiased) are the running statistics ``(1 - momentum) * old + momentum * batch``.
    """

    name = "spike.batch_norm_train"

    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    shift = operand_def(TensorType)
    mean = operand_def(TensorType)
    variance = operand_def(TensorType)
    scalars = operand_def(TensorType)
    result = result_def(TensorType)
    batch_mean = result_def(TensorType)
    inverse = result_def(TensorType)
    new_mean = result_def(TensorType)
    new_variance = result_def(TensorType)
    eps = prop_def(FloatAttr)
    momentum = prop_def(FloatAttr)
    repeats = prop_def(IntegerAttr)

    assembly_format = (
        "$x `,` $weight `,` $shift `,` $mean `,` $variance `,` $scalars attr-dict `:` "
        "functional-type(operands, results)"
    )

    def __init__(self, norm: BatchNormOp, scalars: SSAValue) -> None:
        super().__init__([*norm.operands, scalars], dict(norm.properties), norm.location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Keep the shape; everything else has one number per channel."""
        *others, scalars = operands
        check_norm(others, ("weight", "shift", "mean", "variance"), properties)
        expect_type("scalars", scalars, SCALARS)
        return [operands[0], *[operands[1]] * 4]


def norm_properties(eps: float, momentum: float, repeats: int) -> dict[str, FloatAttr | IntegerAttr]:
    """Return the properties of batch normalisation."""
    return {"eps": number(eps), "momentum": number(momentum), "repeats": integer(repeats)}


def check_norm(operands: Sequence[Tensor], rows: Sequence[str], properties: Properties) -> None:
    """Raise VerifyException unless currents, their ``rows`` ``[K]`` and the numbers fit together."""
    x, *others = operands
    expect_element("x", x, f32)
    channels = expect_rank("x", x, 2, 3, 4, 5)[-1]
    for name, row in zip(rows, others, strict=True):
        expect_type(name, row, real((channels,)))
    int_value(properties, "repeats", 1)
    eps, momentum = float_value(properties, "eps"), float_value(properties, "momentum")
    if eps <= 0:
        raise VerifyException(f"expected a positive eps, found {eps}")
    if not 0 <= momentum <= 1:
        raise VerifyException(f"expected a momentum in [0, 1], found {momentum}")
