"""What the ops of ``spike`` and ``sgrad`` share: inferred result types, typed properties, shape arithmetic."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from xdsl.dialects.builtin import (
    BoolAttr,
    DenseArrayBase,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    LocationAttr,
    StringAttr,
    TensorType,
    UnitAttr,
    f32,
    f64,
    i1,
    i32,
    i64,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.irdl import IRDLOperation, IRDLOption, ParsePropInAttrDict, opt_prop_def, prop_def, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.neuron import COMPARES, RESETS, SURROGATES, SYNAPSES, Neuron
from h2learn.backends.reference.training import Loss

Tensor: TypeAlias = TensorType[Attribute]
Ints: TypeAlias = DenseArrayBase[IntegerType]
Floats: TypeAlias = DenseArrayBase[Float64Type]
Properties: TypeAlias = Mapping[str, Attribute]

SCALARS = TensorType(i32, [8])
"""Type of the 32 bytes of run scalars."""

LOSS_KINDS = ("cross_entropy", "mse")
READOUT_KINDS = ("rate", "count", "membrane_mean", "membrane_last", "membrane_max")
SPIKE_READOUTS = ("rate", "count")
POOL_KINDS = ("avg", "max", "sum")
ENCODE_KINDS = ("direct", "bernoulli")


class InferredOp(IRDLOperation, abc.ABC):
    """An op without side effects whose result types follow from its operand types and properties.

    The constructor and the verifier both use :meth:`infer`, so a wrong shape is refused when the op is made.
    """

    traits = traits_def(Pure())
    irdl_options: tuple[IRDLOption, ...] = (ParsePropInAttrDict(),)

    def __init__(
        self,
        operands: Sequence[SSAValue | Sequence[SSAValue]],
        properties: Properties,
        location: LocationAttr,
    ) -> None:
        flat = [v for item in operands for v in ([item] if isinstance(item, SSAValue) else item)]
        results = self.infer([tensor_type(v.type) for v in flat], properties)
        super().__init__(operands=operands, properties=properties, result_types=self.group_results(results))
        self.location = location

    @classmethod
    @abc.abstractmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Return the result types; raises VerifyException when operands or properties do not fit together."""

    @classmethod
    def group_results(cls, results: Sequence[Tensor]) -> Sequence[Attribute | Sequence[Attribute]]:
        """Return the result types as the op's definition groups them."""
        return list(results)

    def verify_(self) -> None:
        """Compare the result types with the inferred ones."""
        expected = self.infer([tensor_type(v.type) for v in self.operands], self.properties)
        found = [result.type for result in self.results]
        if found != expected:
            raise VerifyException(f"{self.name}: expected results {_list(expected)}, found {_list(found)}")


def tensor_type(attribute: Attribute) -> Tensor:
    """Return ``attribute`` as a ranked tensor type with static shape; raises VerifyException otherwise."""
    if not isinstance(attribute, TensorType):
        raise VerifyException(f"expected a tensor, found {attribute}")
    if any(size < 1 for size in attribute.get_shape()):
        raise VerifyException(f"expected a tensor with positive static sizes, found {attribute}")
    return attribute


def real(shape: Sequence[int]) -> Tensor:
    """Return ``tensor<shape x f32>``."""
    return TensorType(f32, list(shape))


def spikes(shape: Sequence[int]) -> Tensor:
    """Return ``tensor<shape x i1>``."""
    return TensorType(i1, list(shape))


def ints(values: Sequence[int]) -> Ints:
    """Return an array attribute of 64-bit integers."""
    return DenseArrayBase.from_list(i64, list(values))


def floats(values: Sequence[float]) -> Floats:
    """Return an array attribute of float64."""
    return DenseArrayBase.from_list(f64, list(values))


def integer(value: int) -> IntegerAttr[IntegerType]:
    """Return a 64-bit integer attribute."""
    return IntegerAttr(value, i64)


def number(value: float) -> FloatAttr[Float64Type]:
    """Return a float64 attribute."""
    return FloatAttr(float(value), f64)


def int_values(properties: Properties, name: str, length: int, low: int = 0) -> tuple[int, ...]:
    """Return integer array property ``name``; raises VerifyException unless it has ``length`` items >= ``low``."""
    values = _integers(properties, name)
    if len(values) != length or any(v < low for v in values):
        raise VerifyException(f"expected {length} integers >= {low} as {name}, found {list(values)}")
    return values


def int_list(properties: Properties, name: str) -> tuple[int, ...]:
    """Return integer array property ``name``, of any length; raises VerifyException when an item is negative."""
    values = _integers(properties, name)
    if any(v < 0 for v in values):
        raise VerifyException(f"expected integers >= 0 as {name}, found {list(values)}")
    return values


def float_values(properties: Properties, name: str) -> tuple[float, ...]:
    """Return float array property ``name``; raises VerifyException when a value is not finite."""
    attribute = properties.get(name)
    if not isinstance(attribute, DenseArrayBase) or not isinstance(attribute.elt_type, Float64Type):
        raise VerifyException(f"expected a float64 array {name}, found {attribute}")
    values = tuple(float(v) for v in attribute.get_values())
    if not all(map(math.isfinite, values)):
        raise VerifyException(f"expected finite numbers as {name}, found {list(values)}")
    return values


def int_value(properties: Properties, name: str, low: int) -> int:
    """Return integer property ``name``; raises VerifyException when it is below ``low``."""
    attribute = properties.get(name)
    if not isinstance(attribute, IntegerAttr) or attribute.value.data < low:
        raise VerifyException(f"expected an integer >= {low} as {name}, found {attribute}")
    return int(attribute.value.data)


def float_value(properties: Properties, name: str) -> float:
    """Return float property ``name``; raises VerifyException when it is not finite."""
    attribute = properties.get(name)
    if not isinstance(attribute, FloatAttr) or not math.isfinite(attribute.value.data):
        raise VerifyException(f"expected a finite number as {name}, found {attribute}")
    return float(attribute.value.data)


def choice(properties: Properties, name: str, allowed: Sequence[str]) -> str:
    """Return string property ``name``; raises VerifyException when it is not one of ``allowed``."""
    attribute = properties.get(name)
    if not isinstance(attribute, StringAttr) or attribute.data not in allowed:
        raise VerifyException(f"expected {name} to be one of {', '.join(allowed)}, found {attribute}")
    return attribute.data


class IntegratingOp(InferredOp, abc.ABC):
    """An op about the membrane of :class:`h2learn.backends.reference.neuron.Neuron`; spikes are another matter."""

    alpha = prop_def(DenseArrayBase)
    gain = prop_def(DenseArrayBase, default_value=floats((1.0,)))
    v_leak = prop_def(DenseArrayBase, default_value=floats((0.0,)))
    initial = prop_def(DenseArrayBase, default_value=floats((0.0,)))
    synapse = prop_def(StringAttr, default_value=StringAttr("none"))
    beta = prop_def(DenseArrayBase, default_value=floats((0.0,)))


class FiringOp(IntegratingOp, abc.ABC):
    """An op about a neuron that spikes."""

    theta = prop_def(DenseArrayBase)
    v_reset = prop_def(DenseArrayBase)
    reset = prop_def(StringAttr)
    compare = prop_def(StringAttr)
    surrogate = prop_def(StringAttr)
    width = prop_def(FloatAttr)
    height = prop_def(FloatAttr)
    detach_reset = prop_def(BoolAttr)
    max_spikes = prop_def(IntegerAttr, default_value=IntegerAttr(1, i64))
    v_min = opt_prop_def(FloatAttr)
    periodic = opt_prop_def(UnitAttr)


def loss_of(op: Operation | Properties) -> Loss:
    """Return the loss that an op (or its properties) describes; raises VerifyException when it is not one."""
    p = op.properties if isinstance(op, Operation) else op
    hit, miss, share = (float_value(p, name) for name in ("hit", "miss", "share"))
    if share <= 0:
        raise VerifyException(f"expected a positive share, found {share}")
    return Loss(choice(p, "kind", LOSS_KINDS), hit, miss, share)


def loss_properties(loss: Loss) -> dict[str, Attribute]:
    """Return the properties of ``spike.loss`` and ``sgrad.loss`` that describe ``loss``."""
    numbers = {name: number(getattr(loss, name)) for name in ("hit", "miss", "share")}
    return {"kind": StringAttr(loss.kind), **numbers}


def neuron_of(op: Operation | Properties) -> Neuron:
    """Return the neuron that an op (or its properties) describes; raises VerifyException when it is not a neuron."""
    p = op.properties if isinstance(op, Operation) else op
    detach, default = p.get("detach_reset"), Neuron()
    neuron = replace(
        integrator_of(p),
        theta=float_values(p, "theta"),
        v_reset=float_values(p, "v_reset"),
        reset=choice(p, "reset", RESETS),
        compare=choice(p, "compare", COMPARES),
        surrogate=choice(p, "surrogate", SURROGATES),
        width=float_value(p, "width"),
        height=float_value(p, "height"),
        detach_reset=isinstance(detach, IntegerAttr) and bool(detach.value.data),
        max_spikes=int_value(p, "max_spikes", 0) if "max_spikes" in p else default.max_spikes,
        v_min=float_value(p, "v_min") if "v_min" in p else None,
        periodic="periodic" in p,
    )
    if neuron.width <= 0:
        raise VerifyException(f"expected a positive width, found {neuron.width}")
    return neuron


def integrator_of(op: Operation | Properties) -> Neuron:
    """Return the membrane that an op (or its properties) describes, of a neuron without reset.

    Raises VerifyException when it is none.
    """
    p = op.properties if isinstance(op, Operation) else op
    default = Neuron()

    def values(name: str) -> tuple[float, ...]:
        return float_values(p, name) if name in p else getattr(default, name)

    return Neuron(
        alpha=float_values(p, "alpha"),
        reset="none",
        gain=values("gain"),
        v_leak=values("v_leak"),
        initial=values("initial"),
        synapse=choice(p, "synapse", SYNAPSES) if "synapse" in p else default.synapse,
        beta=values("beta"),
    )


def neuron_properties(neuron: Neuron) -> dict[str, Attribute]:
    """Return the properties of ``spike.lif`` and ``sgrad.lif`` that describe ``neuron``."""
    return {
        **integrator_properties(neuron),
        "theta": floats(neuron.theta),
        "v_reset": floats(neuron.v_reset),
        "reset": StringAttr(neuron.reset),
        "compare": StringAttr(neuron.compare),
        "surrogate": StringAttr(neuron.surrogate),
        "width": number(neuron.width),
        "height": number(neuron.height),
        "detach_reset": BoolAttr.from_bool(neuron.detach_reset),
        "max_spikes": integer(neuron.max_spikes),
        **({} if neuron.v_min is None else {"v_min": number(neuron.v_min)}),
        **({"periodic": UnitAttr()} if neuron.periodic else {}),
    }


def integrator_properties(neuron: Neuron) -> dict[str, Attribute]:
    """Return the properties of ``spike.li`` and ``sgrad.li`` that describe the membrane of ``neuron``."""
    return {
        "alpha": floats(neuron.alpha),
        "gain": floats(neuron.gain),
        "v_leak": floats(neuron.v_leak),
        "initial": floats(neuron.initial),
        "synapse": StringAttr(neuron.synapse),
        "beta": floats(neuron.beta),
    }


def check_channels(name: str, values: Sequence[float], channels: int) -> None:
    """Raise VerifyException unless ``values`` holds one number or one per channel."""
    if len(values) not in (1, channels):
        raise VerifyException(f"expected 1 or {channels} numbers as {name}, found {len(values)}")


def expect_element(name: str, found: Tensor, *allowed: Attribute) -> None:
    """Raise VerifyException unless the element type of ``found`` is one of ``allowed``."""
    if found.element_type not in allowed:
        raise VerifyException(f"expected {name} of {' or '.join(map(str, allowed))}, found {found}")


def expect_type(name: str, found: Tensor, expected: Tensor) -> None:
    """Raise VerifyException unless the types are the same."""
    if found != expected:
        raise VerifyException(f"expected {name} of type {expected}, found {found}")


def expect_rank(name: str, found: Tensor, *ranks: int) -> tuple[int, ...]:
    """Return the shape of ``found``; raises VerifyException when its rank is not one of ``ranks``."""
    shape = found.get_shape()
    if len(shape) not in ranks:
        raise VerifyException(f"expected {name} of rank {' or '.join(map(str, ranks))}, found {found}")
    return tuple(shape)


def conv_shape(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] = (0, 0)
) -> tuple[int, int]:
    """Return rows and columns after windows of ``kernel`` slide over (rows, columns) ``shape``.

    Sizes are rounded down as in PyTorch; raises VerifyException when no window fits.
    """
    rows, columns = (
        (size + 2 * pad - window) // step + 1
        for size, window, step, pad in zip(shape, kernel, stride, padding, strict=True)
    )
    if rows < 1 or columns < 1:
        raise VerifyException(
            f"expected an input of at least {kernel[0]} x {kernel[1]} after padding, "
            f"found {shape[0] + 2 * padding[0]} x {shape[1] + 2 * padding[1]}"
        )
    return rows, columns


def _integers(properties: Properties, name: str) -> tuple[int, ...]:
    attribute = properties.get(name)
    if not isinstance(attribute, DenseArrayBase) or not isinstance(attribute.elt_type, IntegerType):
        raise VerifyException(f"expected an integer array {name}, found {attribute}")
    return tuple(int(v) for v in attribute.get_values())


def _list(types: Sequence[Attribute]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"
