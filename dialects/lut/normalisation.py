"""Batch normalisation at the ``lut`` level: statistics, the map itself, and its gradient, all on the vector unit.

Arithmetic: ``v.stat``, ``v.fold`` and ``v.norm`` in ``docs/semantics.md``. Sums run over blocks of positions, blocks of
samples outermost, then rows, columns, steps; a block is summed on its own, flat over (t, n, y, x), and then added.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from xdsl.dialects.builtin import (
    DenseArrayBase,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    LocationAttr,
    TensorType,
    f64,
    i64,
)
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from .attributes import GradsType, Shape, shape_of
from .base import RUN_SCALARS, Block, LutOp, tensor


class _NormalisationOp(LutOp, ABC):
    """An op on currents ``x`` ``[(T,)N,H,W,K]`` to which ``bias`` ``[K]`` of the layer below is added first."""

    ENGINE: ClassVar[str] = "VEC"

    @property
    def shape(self) -> Shape:
        """Shape of the currents."""
        return shape_of(self.operands[0].type)

    def verify_rows(self, bias: SSAValue | None, *rows: SSAValue) -> None:
        """Check that the currents are a map and that ``rows`` and the bias have one number per channel."""
        if len(self.shape) not in (4, 5):
            raise VerifyException(f"expected currents as [T,N,H,W,K] or [N,H,W,K], found {self.operands[0].type}")
        for row in (*rows, *_optional(bias)):
            if shape_of(row.type) != self.shape[-1:]:
                raise VerifyException(f"expected one number for each of {self.shape[-1]} channels, found {row.type}")


@irdl_op_definition
class NormStatsOp(_NormalisationOp):
    """Mean and 1/deviation of the valid samples per channel; the running mean and variance follow them."""

    name = "lut.norm_stats"

    x = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    mean = operand_def(TensorType)
    variance = operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    batch_mean = result_def(TensorType)
    inverse = result_def(TensorType)
    new_mean = result_def(TensorType)
    new_variance = result_def(TensorType)
    eps_attr = prop_def(FloatAttr[Float64Type], prop_name="eps")
    momentum_attr = prop_def(FloatAttr[Float64Type], prop_name="momentum")
    repeats_attr = prop_def(IntegerAttr[IntegerType], prop_name="repeats")
    reduce_attr = prop_def(DenseArrayBase, prop_name="reduce_block")
    assembly_format = (
        "$x (`bias` $bias^)? `running` $mean `,` $variance `,` $scalars attr-dict `:` type($x) (`bias` type($bias)^)? "
        "`running` type($mean) `,` type($variance) `->` type($batch_mean) `,` type($inverse) `,` type($new_mean) `,` "
        "type($new_variance)"
    )

    def __init__(
        self,
        x: SSAValue,
        bias: SSAValue | None,
        running: tuple[SSAValue, SSAValue],
        scalars: SSAValue,
        *,
        eps: float,
        momentum: float,
        repeats: int,
        reduce_block: Block,
        location: LocationAttr | None = None,
    ) -> None:
        row = tensor(shape_of(x.type)[-1:])
        numbers = {"eps": FloatAttr(eps, f64), "momentum": FloatAttr(momentum, f64)}
        counts = {"repeats": IntegerAttr(repeats, i64), "reduce_block": DenseArrayBase.from_list(i64, reduce_block)}
        self.construct([x, _optional(bias), *running, scalars], [row] * 4, {**numbers, **counts}, location)

    @property
    def eps(self) -> float:
        """Added to the variance."""
        return self.eps_attr.value.data

    @property
    def momentum(self) -> float:
        """Share of the batch in the running statistics."""
        return self.momentum_attr.value.data

    @property
    def repeats(self) -> int:
        """How often a value counts in the running variance."""
        return self.repeats_attr.value.data

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one block."""
        return _block(self.reduce_attr)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_rows(self.bias, self.mean, self.variance, *self.results)
        _verify_blocks(self.reduce_block, self.shape)


@irdl_op_definition
class NormOp(_NormalisationOp):
    """Currents normalised: ``(x + bias - mean) * inverse * weight + shift``."""

    name = "lut.norm"

    x = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    mean = operand_def(TensorType)
    inverse = operand_def(TensorType)
    weight = operand_def(TensorType)
    shift = operand_def(TensorType)
    current = result_def(TensorType)
    assembly_format = (
        "$x (`bias` $bias^)? `by` $mean `,` $inverse `,` $weight `,` $shift attr-dict `:` type($x) "
        "(`bias` type($bias)^)? `by` type($mean) `,` type($inverse) `,` type($weight) `,` type($shift) `->` "
        "type($current)"
    )

    def __init__(
        self,
        x: SSAValue,
        bias: SSAValue | None,
        statistics: tuple[SSAValue, SSAValue],
        weight: SSAValue,
        shift: SSAValue,
        location: LocationAttr | None = None,
    ) -> None:
        self.construct([x, _optional(bias), *statistics, weight, shift], [x.type], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_rows(self.bias, self.mean, self.inverse, self.weight, self.shift)


@irdl_op_definition
class NormSumsOp(_NormalisationOp):
    """Gradients of weight and shift: the sums of ``gu * normalised`` and of ``gu`` over the valid samples."""

    name = "lut.norm_sums"

    x = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    gu = operand_def(GradsType)
    mean = operand_def(TensorType)
    inverse = operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    weight_gradient = result_def(TensorType)
    shift_gradient = result_def(TensorType)
    reduce_attr = prop_def(DenseArrayBase, prop_name="reduce_block")
    assembly_format = (
        "$gu `,` $x (`bias` $bias^)? `by` $mean `,` $inverse `,` $scalars attr-dict `:` type($gu) `,` type($x) "
        "(`bias` type($bias)^)? `by` type($mean) `,` type($inverse) `->` type($weight_gradient) `,` "
        "type($shift_gradient)"
    )

    def __init__(
        self,
        gu: SSAValue,
        x: SSAValue,
        bias: SSAValue | None,
        statistics: tuple[SSAValue, SSAValue],
        scalars: SSAValue,
        reduce_block: Block,
        location: LocationAttr | None = None,
    ) -> None:
        row = tensor(shape_of(x.type)[-1:])
        block = DenseArrayBase.from_list(i64, reduce_block)
        self.construct([x, _optional(bias), gu, *statistics, scalars], [row, row], {"reduce_block": block}, location)

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one block."""
        return _block(self.reduce_attr)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_rows(self.bias, self.mean, self.inverse, *self.results)
        _verify_gradient(self.gu.type, self.shape)
        _verify_blocks(self.reduce_block, self.shape)


@irdl_op_definition
class NormGradOp(_NormalisationOp):
    """Gradient of the currents, through mean and deviation of the batch; dense even where ``gu`` is sparse."""

    name = "lut.norm_grad"

    x = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    gu = operand_def(GradsType)
    mean = operand_def(TensorType)
    inverse = operand_def(TensorType)
    weight = operand_def(TensorType)
    weight_gradient = operand_def(TensorType)
    shift_gradient = operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    result = result_def(GradsType)
    assembly_format = (
        "$gu `,` $x (`bias` $bias^)? `by` $mean `,` $inverse `,` $weight `sums` $weight_gradient `,` $shift_gradient "
        "`,` $scalars attr-dict `:` type($gu) `,` type($x) (`bias` type($bias)^)? `by` type($mean) `,` "
        "type($inverse) `,` type($weight) `sums` type($weight_gradient) `,` type($shift_gradient) `->` type($result)"
    )

    def __init__(self, sums: NormSumsOp, weight: SSAValue, location: LocationAttr | None = None) -> None:
        statistics = [sums.mean, sums.inverse, weight, sums.weight_gradient, sums.shift_gradient]
        self.construct([sums.x, _optional(sums.bias), sums.gu, *statistics, sums.scalars], [sums.gu.type], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_rows(self.bias, self.mean, self.inverse, self.weight, self.weight_gradient, self.shift_gradient)
        _verify_gradient(self.gu.type, self.shape)
        _verify_gradient(self.result.type, self.shape)


NormalisationOp: TypeAlias = NormStatsOp | NormOp | NormSumsOp | NormGradOp


def _block(attribute: DenseArrayBase[IntegerType]) -> Block:
    steps, samples, rows, columns = attribute.get_values()
    return steps, samples, rows, columns


def _verify_blocks(block: Block, shape: Shape) -> None:
    sizes: Sequence[int] = shape[:-1] if len(shape) == 5 else (1, *shape[:-1])
    if min(block) < 1 or any(size % part for size, part in zip(sizes, block, strict=True)):
        raise VerifyException(f"expected whole blocks of {list(sizes)} positions, found {list(block)}")


def _verify_gradient(gradient: Attribute, shape: Shape) -> None:
    if shape_of(gradient) != shape:
        raise VerifyException(f"expected a gradient of the shape {list(shape)}, found {gradient}")


def _optional(value: SSAValue | None) -> list[SSAValue]:
    return [] if value is None else [value]
