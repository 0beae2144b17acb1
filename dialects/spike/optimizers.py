"""The updates of ``spike``: one parameter, its gradient and its buffers in, the new parameter and buffers out."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from xdsl.dialects.builtin import BoolAttr, FloatAttr, IntegerAttr, LocationAttr, TensorType, f32
from xdsl.ir import Attribute, OpResult, SSAValue
from xdsl.irdl import (
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    prop_def,
    result_def,
    var_operand_def,
    var_result_def,
)
from xdsl.utils.exceptions import VerifyException

from .base import (
    SCALARS,
    InferredOp,
    Properties,
    Tensor,
    expect_element,
    expect_type,
    float_value,
    number,
)


class UpdateOp(InferredOp, abc.ABC):
    """An optimizer's step on one parameter; learning rate and step count are read from the run scalars.

    The gradient counts ``grad_scale`` times (the inverse of the loss scale). ``states`` are the buffers that the
    optimizer keeps for the parameter.
    """

    parameter = operand_def(TensorType)
    gradient = operand_def(TensorType)
    states = var_operand_def(TensorType)
    scalars = operand_def(TensorType)
    new_parameter = result_def(TensorType)
    new_states = var_result_def(TensorType)
    weight_decay = prop_def(FloatAttr)
    grad_scale = prop_def(FloatAttr)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$parameter `,` $gradient (`,` `states` `(` $states^ `)`)? `,` `scalars` $scalars attr-dict `:` "
        "functional-type(operands, results)"
    )

    def __init__(
        self,
        parameter: SSAValue,
        gradient: SSAValue,
        states: Sequence[SSAValue],
        scalars: SSAValue,
        properties: Properties,
        *,
        weight_decay: float,
        grad_scale: float,
        location: LocationAttr,
    ) -> None:
        common = {"weight_decay": number(weight_decay), "grad_scale": number(grad_scale)}
        super().__init__([parameter, gradient, list(states), scalars], {**properties, **common}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the parameter's type for the parameter and every buffer."""
        parameter, *others, scalars = operands
        expect_element("parameter", parameter, f32)
        expect_type("scalars", scalars, SCALARS)
        for name, other in zip(("gradient", *("state" for _ in others)), others, strict=False):
            expect_type(name, other, parameter)
        float_value(properties, "grad_scale")
        if float_value(properties, "weight_decay") < 0:
            raise VerifyException(f"expected a weight decay >= 0, found {float_value(properties, 'weight_decay')}")
        cls.check(len(others) - 1, properties)
        return [parameter] * len(others)

    @classmethod
    @abc.abstractmethod
    def check(cls, states: int, properties: Properties) -> None:
        """Check the number of buffers and the properties of one optimizer; raises VerifyException."""

    @classmethod
    def group_results(cls, results: Sequence[Tensor]) -> Sequence[Attribute | Sequence[Attribute]]:
        """Group the buffers."""
        return [results[0], list(results[1:])]

    def updated(self) -> list[OpResult]:
        """Return the new parameter and the new buffers."""
        return [self.new_parameter, *self.new_states]


@irdl_op_definition
class SgdOp(UpdateOp):
    """Stochastic gradient descent, with a velocity ``m`` when there is momentum.

    ``g' = grad_scale * g + weight_decay * p``; with a momentum ``m' = momentum*m + g'`` and ``p' = p - lr * m'``, or
    ``p' = p - lr * (g' + momentum*m')`` with ``nesterov``; without ``p' = p - lr * g'``.
    """

    name = "spike.sgd"

    momentum = prop_def(FloatAttr)
    nesterov = prop_def(BoolAttr)

    def __init__(
        self,
        parameter: SSAValue,
        gradient: SSAValue,
        velocity: SSAValue | None,
        scalars: SSAValue,
        *,
        momentum: float,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        grad_scale: float = 1.0,
        location: LocationAttr,
    ) -> None:
        super().__init__(
            parameter,
            gradient,
            [] if velocity is None else [velocity],
            scalars,
            {"momentum": number(momentum), "nesterov": BoolAttr.from_bool(nesterov)},
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            location=location,
        )

    @classmethod
    def check(cls, states: int, properties: Properties) -> None:
        """Expect a velocity with momentum, and momentum for Nesterov's variant."""
        momentum = _share(properties, "momentum")
        if states != int(momentum != 0):
            raise VerifyException(f"expected {int(momentum != 0)} velocity with momentum {momentum}")
        if flag(properties, "nesterov") and momentum == 0:
            raise VerifyException("expected a momentum above 0 with nesterov, found 0")


@irdl_op_definition
class AdamOp(UpdateOp):
    """Adam with bias correction; the buffers are the averages ``m`` of gradients and ``v`` of their squares.

    In step ``t`` = 1 + the step of the run scalars: ``g' = grad_scale * g``, plus ``weight_decay * p`` or, when
    ``decoupled`` (AdamW), ``p`` shrinks to ``p * (1 - lr * weight_decay)`` instead; ``m' = m + (1-beta1) * (g' - m)``,
    ``v' = beta2 * v + (1-beta2) * g'^2``,
    ``p' = p - lr/(1-beta1^t) * m' / (sqrt(v')/sqrt(1-beta2^t) + eps)``.
    """

    name = "spike.adam"

    beta1 = prop_def(FloatAttr)
    beta2 = prop_def(FloatAttr)
    eps = prop_def(FloatAttr)
    decoupled = prop_def(BoolAttr)

    def __init__(
        self,
        parameter: SSAValue,
        gradient: SSAValue,
        averages: tuple[SSAValue, SSAValue],
        scalars: SSAValue,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        grad_scale: float = 1.0,
        location: LocationAttr,
    ) -> None:
        own = {"beta1": number(betas[0]), "beta2": number(betas[1]), "eps": number(eps)}
        super().__init__(
            parameter,
            gradient,
            averages,
            scalars,
            {**own, "decoupled": BoolAttr.from_bool(decoupled)},
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            location=location,
        )

    @classmethod
    def check(cls, states: int, properties: Properties) -> None:
        """Expect both averages."""
        if states != 2:
            raise VerifyException(f"expected 2 averages, found {states}")
        for name in ("beta1", "beta2"):
            _share(properties, name)
        if float_value(properties, "eps") < 0:
            raise VerifyException(f"expected eps >= 0, found {float_value(properties, 'eps')}")


def flag(properties: Properties, name: str) -> bool:
    """Return boolean property ``name``; raises VerifyException when there is none."""
    attribute = properties.get(name)
    if not isinstance(attribute, IntegerAttr):
        raise VerifyException(f"expected true or false as {name}, found {attribute}")
    return bool(attribute.value.data)


def _share(properties: Properties, name: str) -> float:
    value = float_value(properties, name)
    if not 0 <= value < 1:
        raise VerifyException(f"expected {name} in [0, 1), found {value}")
    return value
