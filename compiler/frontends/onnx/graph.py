"""ONNX files as plain data: every node with its attributes as Python values, checked for form only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.inliner
from onnx import helper, numpy_helper

from h2learn.backends.h2learn.errors import H2LearnError, why

_BAD_NODE = re.compile(r"[Nn]ame: (.*) OpType: (\w*)")

Array = npt.NDArray[np.generic]
Dimension = int | str | None
"""A size, a named unknown, or an unknown."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A known tensor; ``name`` is the initializer it is, ``transposed`` tells that its two axes were exchanged."""

    array: Array
    name: str = ""
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.array.shape)

    @cached_property
    def uniform(self) -> float | None:
        """The value of all elements, None when they differ (or there are none)."""
        if self.array.size == 0 or self.array.dtype.kind not in "biuf":
            return None
        first = self.array.flat[0]
        return float(first) if bool(np.all(self.array == first)) else None

    @cached_property
    def digest(self) -> bytes:
        """A hash of shape and contents."""
        head = f"{self.array.dtype} {self.array.shape}".encode()
        return hashlib.blake2b(head + np.ascontiguousarray(self.array).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class GraphNode:
    """One node. ``op`` has its domain before it (``snn::LIFStep``) unless that is ONNX's own."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]
    scope: str = ""

    @property
    def label(self) -> str:
        """How messages call the node."""
        return self.name or (self.outputs[0] if self.outputs else self.op)

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise ValueError(f"expected an integer as attribute {name}, found {value!r}")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a list of integers."""
        value = self.attributes.get(name, default)
        if not isinstance(value, tuple | list) or not all(isinstance(v, int) for v in value):
            raise ValueError(f"expected integers as attribute {name}, found {value!r}")
        return tuple(value)

    def number(self, name: str, default: float) -> float:
        """Return a real attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise ValueError(f"expected a number as attribute {name}, found {value!r}")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def graph(self, name: str) -> Graph:
        """Return a sub-graph."""
        value = self.attributes.get(name)
        if not isinstance(value, Graph):
            raise ValueError(f"expected a graph as attribute {name}, found none")
        return value


@dataclass(frozen=True)
class GraphInput:
    """An input: ``shape`` is None when the file does not say it, ``kind`` an ONNX element type."""

    name: str
    shape: tuple[Dimension, ...] | None
    kind: int


@dataclass(frozen=True)
class Graph:
    """A graph or the body of a loop; ``inputs`` leaves out initializers."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    initializers: Mapping[str, Constant]
    nodes: tuple[GraphNode, ...]
    opset: int = field(default=0)


def read_graph(path: str | PathLike[str]) -> Graph:
    """Return the main graph of an ``.onnx`` file.

    Raises H2LearnError when the file cannot be read, is no ONNX model, or breaks the rules of the format.
    """
    file = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise H2LearnError(f"expected a readable file, found {why(error)}", location=file) from None
    if not data:
        raise H2LearnError("expected an ONNX model, found an empty file", location=file)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises many types for damaged bytes
        raise H2LearnError(
            f"expected an ONNX model, found damaged data ({_first_line(error)})", location=file
        ) from None
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(Path(path).parent))
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
        graph = _graph(model.graph, versions[0] if versions else 0)
    except Exception as error:  # the checker and the tensor readers raise many types for damaged fields
        raise H2LearnError(f"expected a valid ONNX model, found {_place(error)}", location=file) from None
    if not 7 <= graph.opset <= 30:
        raise H2LearnError(f"expected operator set 7 to 30 of ONNX, found {graph.opset}", location=file)
    return graph


def _place(error: Exception) -> str:
    """Return what is wrong, after the node it is in where the checker says so."""
    found = _BAD_NODE.findall(str(error))
    what = _first_line(error).removesuffix(" of node:")
    named = [f"{name or 'without name'} ({op or 'no operator'})" for name, op in found]
    return f"in node {named[-1]}: {what}" if named else what


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _graph(proto: onnx.GraphProto, opset: int) -> Graph:
    initializers = {t.name: Constant(_tensor(t, f"tensor {t.name}"), t.name) for t in proto.initializer}
    if proto.sparse_initializer:
        raise ValueError("sparse initializers are not supported")
    inputs = tuple(_input(value) for value in proto.input if value.name not in initializers)
    nodes = tuple(_node(node, opset) for node in proto.node)
    return Graph(inputs, tuple(value.name for value in proto.output), initializers, nodes, opset)


def _input(value: onnx.ValueInfoProto) -> GraphInput:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return GraphInput(value.name, None, tensor.elem_type)
    return GraphInput(value.name, tuple(_dimension(d) for d in tensor.shape.dim), tensor.elem_type)


def _dimension(dimension: onnx.TensorShapeProto.Dimension) -> Dimension:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return dimension.dim_param or None


def _node(node: onnx.NodeProto, opset: int) -> GraphNode:
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    label = f"node {node.name or ', '.join(node.output)} ({op})"
    attributes = {a.name: _attribute(a, opset, f"{label}, attribute {a.name}") for a in node.attribute}
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    return GraphNode(op, node.name, tuple(node.input), tuple(node.output), attributes, _scope(scopes))


def _attribute(attribute: onnx.AttributeProto, opset: int, place: str) -> object:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return _graph(attribute.g, opset)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _tensor(attribute.t, place)
    value: object = helper.get_attribute_value(attribute)
    return tuple(value) if isinstance(value, list) else value


def _tensor(tensor: onnx.TensorProto, place: str) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except KeyError:
        raise ValueError(f"in {place}: unknown data_type {tensor.data_type}") from None
    except Exception as error:  # any type, for damaged shapes and data
        raise ValueError(f"in {place}: {_first_line(error)}") from None


def _scope(scopes: str) -> str:
    """Return the module that PyTorch's exporter notes beside a node (``['', 'layers.0', 'linear']``), or nothing."""
    parts = [part.strip().strip("'\"") for part in scopes.strip("[]").split(",")]
    return parts[-2] if len(parts) >= 2 else ""
