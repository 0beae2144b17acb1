"""From the last neurons to the loss, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import Float64Type, FloatAttr, LocationAttr, StringAttr, TensorType, f64
from xdsl.ir import SSAValue
from xdsl.irdl import (
    AttrSizedResultSegments,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_result_def,
    prop_def,
    result_def,
    var_operand_def,
    var_result_def,
)
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.training import Loss

from .attributes import SpikesType, StoreType, Update, UpdateAttr, shape_of
from .base import PLAIN_SYNTAX, RUN_SCALARS, LutOp, expect, expect_shape, tensor, verify_word

READOUT_KINDS = ("rate", "count", "membrane_mean", "membrane_last", "membrane_max")
SPIKE_READOUTS = ("rate", "count")
LOSS_KINDS = ("cross_entropy", "mse")


@irdl_op_definition
class ReadoutOp(LutOp):
    """Logits ``[N,1,1,K]`` from ``[T,N,1,1,K]``: rate or count of spikes (bits or numbers), membrane potentials."""

    name = "lut.readout"
    ENGINE: ClassVar[str] = "VEC"
    x = operand_def()
    logits = result_def(TensorType)
    kind_attr = prop_def(StringAttr, prop_name="kind")
    assembly_format = PLAIN_SYNTAX

    def __init__(self, x: SSAValue, kind: str, location: LocationAttr | None = None) -> None:
        self.construct([x], [tensor(shape_of(x.type)[1:])], {"kind": StringAttr(kind)}, location)

    @property
    def kind(self) -> str:
        """``"rate"``, ``"count"``, ``"membrane_mean"``, ``"membrane_last"`` or ``"membrane_max"``."""
        return self.kind_attr.data

    def verify_(self) -> None:
        """Check the format and shapes."""
        verify_word("readout", self.kind, READOUT_KINDS)
        expected = (SpikesType, StoreType) if self.kind in SPIKE_READOUTS else (StoreType,)
        if not isinstance(self.x.type, expected):
            names = " or ".join(kind.name for kind in expected)
            raise VerifyException(f"expected {names} for the readout {self.kind}, found {self.x.type}")
        shape = shape_of(self.x.type)
        expect("rank of the readout's input", len(shape), 5)
        expect_shape("logits", self.logits.type, shape[1:])


@irdl_op_definition
class SpreadOp(LutOp):
    """Gradient ``[T,N,1,1,K]`` of a maximum over time: ``g`` at the first step with the maximum of ``x``, else +0."""

    name = "lut.spread"
    ENGINE: ClassVar[str] = "VEC"
    g = operand_def(TensorType)
    x = operand_def(StoreType)
    gs = result_def(TensorType)
    assembly_format = PLAIN_SYNTAX

    def __init__(self, g: SSAValue, x: SSAValue, location: LocationAttr | None = None) -> None:
        self.construct([g, x], [tensor(shape_of(x.type))], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        shape = shape_of(self.x.type)
        expect("rank of what was read out", len(shape), 5)
        expect_shape("gradient", self.g.type, shape[1:])
        expect_shape("result", self.gs.type, shape)


@irdl_op_definition
class LossOp(LutOp):
    """Mean loss of the valid samples, and its gradient with respect to the logits times ``scale``."""

    name = "lut.loss"
    ENGINE: ClassVar[str] = "VEC"
    logits = operand_def(TensorType)
    label = operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    loss = result_def(TensorType)
    dlogits = result_def(TensorType)
    kind_attr = prop_def(StringAttr, prop_name="kind")
    hit_attr = prop_def(FloatAttr[Float64Type], prop_name="hit")
    miss_attr = prop_def(FloatAttr[Float64Type], prop_name="miss")
    share_attr = prop_def(FloatAttr[Float64Type], prop_name="share")
    scale_attr = prop_def(FloatAttr[Float64Type], prop_name="scale")
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        logits: SSAValue,
        label: SSAValue,
        scalars: SSAValue,
        what: Loss,
        scale: float,
        location: LocationAttr | None = None,
    ) -> None:
        self.construct(
            [logits, label, scalars],
            [tensor(()), logits.type],
            {
                "kind": StringAttr(what.kind),
                "hit": FloatAttr(what.hit, f64),
                "miss": FloatAttr(what.miss, f64),
                "share": FloatAttr(what.share, f64),
                "scale": FloatAttr(scale, f64),
            },
            location,
        )

    @property
    def what(self) -> Loss:
        """The loss of one sample."""
        numbers = (attribute.value.data for attribute in (self.hit_attr, self.miss_attr, self.share_attr))
        return Loss(self.kind_attr.data, *numbers)

    @property
    def scale(self) -> float:
        """Factor of the gradient: loss scale and share, divided by T where the readout averages over time."""
        return self.scale_attr.value.data

    def verify_(self) -> None:
        """Check shapes."""
        verify_word("loss", self.what.kind, LOSS_KINDS)
        shape = shape_of(self.logits.type)
        expect("rank of the logits", len(shape), 4)
        expect_shape("logits", self.logits.type, (shape[0], 1, 1, shape[-1]))
        expect_shape("labels", self.label.type, (shape[0],))
        expect_shape("gradient", self.dlogits.type, shape)
        expect_shape("loss", self.loss.type, ())


@irdl_op_definition
class OptOp(LutOp):
    """An optimizer's step on one parameter: its buffers are operands and results.

    The new storage copy ``w`` exists for fp16 weights only.
    """

    name = "lut.opt"
    ENGINE: ClassVar[str] = "VEC"
    p = operand_def(TensorType)
    g = operand_def(TensorType)
    states = var_operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    new_p = result_def(TensorType)
    new_states = var_result_def(TensorType)
    w = opt_result_def(StoreType)
    update_attr = prop_def(UpdateAttr, prop_name="update")
    irdl_options = (ParsePropInAttrDict(), AttrSizedResultSegments(as_property=True))
    assembly_format = (
        "$p `,` $g (`states` `(` $states^ `)`)? `,` $scalars attr-dict `:` type($p) `,` type($g) "
        "(`states` `(` type($states)^ `)`)? `->` type($new_p) (`states` `(` type($new_states)^ `)`)? "
        "(`copy` type($w)^)?"
    )

    def __init__(
        self,
        p: SSAValue,
        g: SSAValue,
        states: Sequence[SSAValue],
        scalars: SSAValue,
        update: Update,
        copy_dtype: str | None = None,
        location: LocationAttr | None = None,
    ) -> None:
        """``copy_dtype``: storage type of the copy ``w``, None for no copy."""
        copy = [StoreType(shape_of(p.type), copy_dtype)] if copy_dtype else []
        self.construct(
            [p, g, list(states), scalars],
            [p.type, [p.type for _ in states], copy],
            {"update": UpdateAttr(update)},
            location,
        )

    @property
    def update(self) -> Update:
        """What is computed."""
        return self.update_attr.data

    def verify_(self) -> None:
        """Check shapes and the number of buffers."""
        shape = shape_of(self.p.type)
        expect_shape("gradient", self.g.type, shape)
        expect_shape("new parameter", self.new_p.type, shape)
        for value in (*self.states, *self.new_states):
            expect_shape("buffer", value.type, shape)
        if self.w is not None:
            expect_shape("storage copy", self.w.type, shape)
        if not len(self.states) == len(self.new_states) == self.update.states:
            raise VerifyException(f"expected {self.update.states} buffers as operands and results")
