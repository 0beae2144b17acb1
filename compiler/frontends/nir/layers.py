"""The nodes of NIR as layers: fields checked, before any shape is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .discrete import NEURONS, check_fields
from .record import Real, Record

Pair = tuple[int, int]


@dataclass(frozen=True)
class Port:
    """``Input`` or ``Output``: the shape that the file gives, perhaps with the batch in it."""

    record: Record
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Conv:
    """``Conv2d``; ``weight`` ``[K,C,kh,kw]``, ``bias`` ``[K]``, ``maps`` the rows and columns that the file gives."""

    record: Record
    weight: Real
    bias: Real
    stride: Pair
    padding: Pair
    maps: Pair | None


@dataclass(frozen=True)
class Linear:
    """``Affine``, or ``Linear`` without bias; ``weight`` ``[out,in]``, ``bias`` ``[out]``."""

    record: Record
    weight: Real
    bias: Real | None


@dataclass(frozen=True)
class Pool:
    """``AvgPool2d``, or ``SumPool2d``: the average times ``area``."""

    record: Record
    kernel: Pair
    stride: Pair
    padding: Pair
    area: int


@dataclass(frozen=True)
class Flatten:
    """``Flatten`` of the dimensions from ``start`` to ``end``."""

    record: Record
    start: int
    end: int


@dataclass(frozen=True)
class Scale:
    """``Scale`` by one number, or one per element."""

    record: Record
    scale: Real


@dataclass(frozen=True)
class Cell:
    """A neuron; its constants are read when its shape is known.

    ``feedback``: the weights of an edge that leads from its spikes back to it, which takes one time step.
    """

    record: Record
    feedback: Linear | None = None


@dataclass(frozen=True)
class Delay:
    """``Delay`` by ``seconds``, one number or one per element."""

    record: Record
    seconds: Real


Layer: TypeAlias = Port | Conv | Linear | Pool | Flatten | Scale | Delay | Cell

NOT_YET = {
    "Conv1d": "convolution over one dimension is not supported yet",
}


def read_layer(record: Record) -> Layer:
    """Return a node as a layer; raises H2LearnError that names the node and the field."""
    reader = _READERS.get(record.kind)
    if reader is not None:
        return reader(record)
    if record.kind in NOT_YET:
        raise record.error(NOT_YET[record.kind], "type")
    known = ", ".join(sorted([*_READERS, *NOT_YET]))
    raise record.error(f"expected a node type of NIR, found {record.kind!r}", "type", hint=f"known: {known}")


def _port(record: Record) -> Port:
    return Port(record, record.shape("shape"))


def _conv(record: Record) -> Conv:
    weight = record.real("weight")
    if weight.ndim != 4:
        raise record.error(f"expected a weight [out, in, rows, columns], found shape {list(weight.shape)}", "weight")
    bias = record.real("bias")
    if bias.shape != weight.shape[:1]:
        raise record.error(f"expected shape {list(weight.shape[:1])}, found {list(bias.shape)}", "bias")
    for field in ("groups", "dilation"):
        values = record.integers(field, 1) if record.has(field) else (1,)
        if set(values) != {1}:
            raise record.error(f"only 1 is supported yet, found {list(values)}", field)
    stride = record.pair("stride", 1)
    kernel = (weight.shape[2], weight.shape[3])
    maps = record.pair("input_shape", 1) if record.has("input_shape") else None
    return Conv(record, weight, bias, stride, _padding(record, kernel, stride), maps)


def _padding(record: Record, kernel: Pair, stride: Pair) -> Pair:
    word = record.fields.get("padding")
    if not isinstance(word, str):
        return record.pair("padding", 0)
    if word == "valid":
        return 0, 0
    if word != "same":
        raise record.error(f"expected integers, 'same' or 'valid', found {word!r}", "padding")
    if stride != (1, 1) or kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise record.error("'same' is supported for odd kernels with stride 1", "padding")
    return kernel[0] // 2, kernel[1] // 2


def _linear(record: Record) -> Linear:
    weight = record.real("weight")
    if weight.ndim != 2:
        raise record.error(f"expected a weight [out, in], found shape {list(weight.shape)}", "weight")
    if record.kind == "Linear":
        return Linear(record, weight, None)
    bias = record.real("bias")
    if bias.shape != weight.shape[:1]:
        raise record.error(f"expected shape {list(weight.shape[:1])}, found {list(bias.shape)}", "bias")
    return Linear(record, weight, bias)


def _pool(record: Record) -> Pool:
    kernel = record.pair("kernel_size", 1)
    padding = record.pair("padding", 0)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise record.error(f"expected at most half the window {list(kernel)}, found {list(padding)}", "padding")
    area = kernel[0] * kernel[1] if record.kind == "SumPool2d" else 1
    return Pool(record, kernel, record.pair("stride", 1), padding, area)


def _flatten(record: Record) -> Flatten:
    return Flatten(record, record.integer("start_dim", -32), record.integer("end_dim", -32))


def _scale(record: Record) -> Scale:
    return Scale(record, record.real("scale"))


def _delay(record: Record) -> Delay:
    return Delay(record, record.real("delay"))


def _cell(record: Record) -> Cell:
    check_fields(record)
    return Cell(record)


_READERS: dict[str, Callable[[Record], Layer]] = {
    "Input": _port,
    "Output": _port,
    "Conv2d": _conv,
    "Affine": _linear,
    "Linear": _linear,
    "AvgPool2d": _pool,
    "SumPool2d": _pool,
    "Flatten": _flatten,
    "Scale": _scale,
    "Delay": _delay,
    **dict.fromkeys(NEURONS, _cell),
}
