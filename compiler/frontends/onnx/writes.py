"""Operators that write time steps into a tensor made before: ``result[t] = step``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .executor import Executor, Handler, Inputs
from .graph import Constant, GraphNode
from .operands import constant_steps, known_array, source_text
from .steps import StepNode
from .values import RefusalError, Series, Value, axis_of, series, shape_of

NOT_WHOLE = "a write that is not of whole time steps"


def _scatter_nd(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    data, updates = inputs[0], inputs[2]
    shape = shape_of(data) if data is not None else ()
    indices = known_array(inputs[1], "indices").astype(np.int64)
    if node.text("reduction", "none") != "none":
        raise RefusalError("a write that adds")
    places = indices.reshape(-1, indices.shape[-1])
    return [_written(executor, node, data, 0, _whole(places, shape), updates)]


def _scatter_elements(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    data, updates = inputs[0], inputs[2]
    shape = shape_of(data) if data is not None else ()
    axis = axis_of(node.integer("axis", 0), len(shape))
    indices = known_array(inputs[1], "indices").astype(np.int64)
    rest = [size for place, size in enumerate(shape) if place != axis]
    found = np.moveaxis(indices, axis, 0).reshape(indices.shape[axis], -1)
    whole = [size for place, size in enumerate(indices.shape) if place != axis] == rest
    if node.text("reduction", "none") != "none" or not whole or (found != found[:, :1]).any():
        raise RefusalError(NOT_WHOLE)
    return [_written(executor, node, data, axis, found[:, 0], updates)]


def _whole(places: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the first indices of ``places``, which must select all of what lies below them, in order."""
    below = shape[1 : places.shape[1]]
    grid = np.argwhere(np.ones(below, dtype=np.bool_))
    if not len(grid) or len(places) % len(grid):
        raise RefusalError(NOT_WHOLE)
    rows = places.reshape(-1, len(grid), places.shape[1])
    if (rows[:, :, 1:] != grid).any() or (rows[:, :, 0] != rows[:, :1, 0]).any():
        raise RefusalError(NOT_WHOLE)
    return rows[:, 0, 0]


def _written(
    executor: Executor, node: GraphNode, data: Value | None, axis: int, places: npt.NDArray[np.int64], updates: object
) -> Series:
    shape = shape_of(data) if isinstance(data, Constant | Series) else ()
    count, source = (shape[axis] if shape else 0), source_text(node)
    if isinstance(data, Constant):
        parts = constant_steps(data, axis, len(shape), count)
        nodes = [executor.steps.constant(part, source) for part in parts]
    elif isinstance(data, Series) and data.axis == axis:
        nodes = list(data.nodes)
    else:
        raise RefusalError(NOT_WHOLE)
    if isinstance(updates, StepNode) and len(places) == 1:
        new = [updates]
    elif isinstance(updates, Series) and updates.axis == axis and len(updates.nodes) == len(places):
        new = list(updates.nodes)
    else:
        raise RefusalError(NOT_WHOLE)
    for place, step in zip(places.tolist(), new, strict=True):
        nodes[place] = step
    return series(nodes, axis)


WRITES: dict[str, Handler] = {
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
}
