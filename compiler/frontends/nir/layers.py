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
    """``Conv2d`` or ``Conv1d``; ``weight`` ``[K,C/groups,(kh,)kw]``, ``bias`` ``[K]``.

    ``maps``: the sizes of the input that the file gives. ``stride``, ``padding`` and ``dilation`` are down and across;
    rows (``Conv1d``) are maps of one row.
    """

    record: Record
    weight: Real
    bias: Real
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    maps: tuple[int, ...] | None

    @property
    def rows(self) -> bool:
        """Whether the input has one dimension beside its channels."""
        return self.weight.ndim == 3

    @property
    def kernel(self) -> Pair:
        """The size of the kernel down and across."""
        return (1, self.weight.shape[2]) if self.rows else (self.weight.shape[2], self.weight.shape[3])


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


def read_layer(record: Record) -> Layer:
    """Return a node as a layer; raises H2LearnError that names the node and the field."""
    reader = _READERS.get(record.kind)
    if reader is None:
        known = ", ".join(sorted(_READERS))
        raise record.error(f"expected a node type of NIR, found {record.kind!r}", "type", hint=f"known: {known}")
    return reader(record)


def _port(record: Record) -> Port:
    return Port(record, record.shape("shape"))


def _conv(record: Record) -> Conv:
    weight = record.real("weight")
    rank = 1 if record.kind == "Conv1d" else 2
    if weight.ndim != rank + 2:
        wanted = "[out, in, length]" if rank == 1 else "[out, in, rows, columns]"
        raise record.error(f"expected a weight {wanted}, found shape {list(weight.shape)}", "weight")
    bias = record.real("bias") if record.has("bias") else weight[:, 0].reshape(len(weight), -1)[:, 0] * 0
    if bias.shape != weight.shape[:1]:
        raise record.error(f"expected shape {list(weight.shape[:1])}, found {list(bias.shape)}", "bias")
    groups = record.integer("groups", 1) if record.has("groups") else 1
    if weight.shape[0] % groups:
        raise record.error(f"expected a divisor of {weight.shape[0]} output channels, found {groups}", "groups")
    stride, dilation = (_window(record, field, rank, 1, 1) for field in ("stride", "dilation"))
    kernel = (1, weight.shape[2]) if rank == 1 else (weight.shape[2], weight.shape[3])
    span = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
    maps = record.pair("input_shape", 1)[:rank] if record.has("input_shape") else None
    return Conv(record, weight, bias, stride, _padding(record, rank, span, stride), dilation, groups, maps)


def _window(record: Record, field: str, rank: int, low: int, default: int) -> Pair:
    """Return a field down and across; rows have ``default`` down."""
    if not record.has(field):
        return default, default
    return (default, record.integer(field, low)) if rank == 1 else record.pair(field, low)


def _padding(record: Record, rank: int, span: Pair, stride: Pair) -> Pair:
    word = record.fields.get("padding")
    if not isinstance(word, str):
        return _window(record, "padding", rank, 0, 0)
    if word == "valid":
        return 0, 0
    if word != "same":
        raise record.error(f"expected integers, 'same' or 'valid', found {word!r}", "padding")
    if stride != (1, 1) or span[0] % 2 == 0 or span[1] % 2 == 0:
        raise record.error("'same' is supported for odd kernels with stride 1", "padding")
    return span[0] // 2, span[1] // 2


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
    "Conv1d": _conv,
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
