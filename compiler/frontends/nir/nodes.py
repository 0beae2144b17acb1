"""Nodes as ``nir`` takes them, made from the layers of an imported graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .discrete import aligned_with, constant_fields, default_of
from .layers import Cell, Conv, Delay, Flatten, Layer, Linear, Pair, Pool, Port, Scale
from .plan import Plan, Shape
from .record import Record

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Node:
    """A node: its name, the name of its class in ``nir``, and the arguments of the class.

    ``feedback``: it leads from the node before back to that node, and is itself no part of the chain.
    """

    name: str
    kind: str
    fields: Mapping[str, object]
    feedback: bool = False


def imported_nodes(
    layers: tuple[Layer, ...], plan: Plan, parameters: Mapping[str, npt.NDArray[np.float32]]
) -> list[Node]:
    """Return the nodes of an imported graph with other parameters; shapes are without the batch, and complete."""
    values = {name: fold.to_file(parameters[name]) for name, fold in plan.folds.items()}
    nodes = []

    def weights(record: Record) -> dict[str, object]:
        return {field: values[name] for field in ("weight", "bias") if (name := f"{record.name}.{field}") in values}

    for layer in layers:
        record = layer.record
        fields = _fields(layer, plan.shapes[record.name])
        nodes.append(Node(record.name, record.kind, {**fields, **weights(record)}))
        if isinstance(layer, Cell) and layer.feedback is not None:
            back = layer.feedback.record
            nodes.append(Node(back.name, back.kind, weights(back), feedback=True))
    return nodes


def port(side: str, shape: Shape) -> dict[str, object]:
    """Return the arguments of ``Input`` (side ``input``) or ``Output``."""
    return {f"{side}_type": {side: np.array(shape)}}


def conv(shape: Shape, stride: Pair, padding: Pair, dilation: Pair = (1, 1), groups: int = 1) -> dict[str, object]:
    """Return the arguments of ``Conv2d`` on maps, or ``Conv1d`` on rows, of ``shape``, without weights."""
    if len(shape) == 2:
        sizes = {"input_shape": shape[1], "stride": stride[1], "padding": padding[1], "dilation": dilation[1]}
        return {**sizes, "groups": groups}
    sizes_2d = {"input_shape": shape[1:], "stride": stride, "padding": padding, "dilation": dilation}
    return {**sizes_2d, "groups": groups}


def pool(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> dict[str, object]:
    """Return the arguments of ``AvgPool2d`` and ``SumPool2d``."""
    return {"kernel_size": np.array(kernel), "stride": np.array(stride), "padding": np.array(padding)}


def flatten(shape: Shape) -> dict[str, object]:
    """Return the arguments of ``Flatten``."""
    return {"input_type": {"input": np.array(shape)}, "start_dim": 0, "end_dim": -1}


def _fields(layer: Layer, shape: Shape) -> dict[str, object]:
    match layer:
        case Port():
            return port(layer.record.kind.lower(), shape)
        case Conv():
            return conv(shape, layer.stride, layer.padding, layer.dilation, layer.groups)
        case Linear():
            return {}
        case Pool():
            return pool(layer.kernel, layer.stride, layer.padding)
        case Flatten():
            return flatten(shape)
        case Scale():
            aligned = aligned_with(layer.record, "scale", layer.scale, shape)
            return {"scale": np.broadcast_to(aligned, shape).astype(layer.scale.dtype)}
        case Delay():
            aligned = aligned_with(layer.record, "delay", layer.seconds, shape)
            return {"delay": np.broadcast_to(aligned, shape).astype(layer.seconds.dtype)}
        case Cell():
            return {field: _constant(layer, field, shape) for field in constant_fields(layer.record)}


def _constant(layer: Cell, field: str, shape: Shape) -> Array:
    if not layer.record.has(field):
        return np.full(shape, default_of(field), dtype=layer.record.real("r").dtype)
    values = layer.record.real(field)
    return np.broadcast_to(aligned_with(layer.record, field, values, shape), shape).astype(values.dtype)
