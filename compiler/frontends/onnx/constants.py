"""Computes what depends on constants only, with ONNX's own reference of each operator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from .graph import Array, Constant, GraphNode
from .values import RefusalError, Value

MAX_CONSTANT_ELEMENTS = 1 << 26

_BROADCAST_NAMES = (
    "Add Sub Mul Div Mod Pow Greater GreaterOrEqual Less LessOrEqual Equal And Or Xor Where Min Max Sum Gemm MatMul"
)
_OTHER_NAMES = (
    "Not Neg Abs Sqrt Exp Log Reciprocal Sigmoid HardSigmoid Tanh Relu Sign Floor Ceil Round Erf Softplus Clip Cast "
    "CastLike Reshape Squeeze Unsqueeze Flatten Gather Slice Concat Split Shape Size Transpose ReduceSum ReduceProd "
    "ReduceMean ReduceMax ReduceMin Identity ScatterND ScatterElements Trilu CumSum Conv BatchNormalization "
    "AveragePool MaxPool GlobalAveragePool Dropout ConvTranspose Softmax LogSoftmax SoftmaxCrossEntropyLoss "
    "NegativeLogLikelihoodLoss GatherElements GatherND OneHot Pad ReduceLogSumExp ReduceSumSquare ReduceL2 "
    "ReduceL1 ReduceLogSum Einsum "
    "Mean DequantizeLinear ArgMax ArgMin TopK NonZero EyeLike Scatter DepthToSpace SpaceToDepth MaxUnpool "
    "Elu Selu LeakyRelu PRelu Gelu ThresholdedRelu Softsign HardSwish Mish "
    "Sin Cos Tan Atan Sinh Cosh IsNaN IsInf LogSumExp LayerNormalization"
)
_BROADCAST = frozenset(_BROADCAST_NAMES.split()) - {"Gemm", "MatMul"}
_FOLDABLE = frozenset(_BROADCAST_NAMES.split()) | frozenset(_OTHER_NAMES.split())


def fold(node: GraphNode, inputs: Sequence[Constant | None], opset: int) -> list[Value]:
    """Return the results of a node on constants."""
    first = inputs[0] if inputs else None
    if node.op == "Identity" and first is not None:
        return [replace(first, name=node.outputs[0])]
    if node.op == "Transpose" and first is not None and first.array.ndim == 2:
        if node.integers("perm", (1, 0)) == (1, 0):
            return [Constant(first.array.T, first.name, not first.transposed)]
        return [first]
    if "::" in node.op:
        raise RefusalError("this operator is not supported", "export the operator's own computation instead")
    _check_constant_size(node, inputs)
    names = [f"i{k}" if value is not None else "" for k, value in enumerate(inputs)]
    outputs = [f"o{k}" for k in range(len(node.outputs))]
    proto = helper.make_node(node.op, names, outputs)
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in _plain(node.attributes).items())
    feeds = {name: value.array for name, value in zip(names, inputs, strict=True) if value is not None}
    given = [_value_info(name, array) for name, array in feeds.items()]
    graph = helper.make_graph([proto], "fold", given, [helper.make_empty_tensor_value_info(o) for o in outputs])
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, feeds)
    return [Constant(np.asarray(result)) for result in results]


def _value_info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _plain(attributes: Mapping[str, object]) -> dict[str, object]:
    return {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in attributes.items()
    }


def _check_constant_size(node: GraphNode, inputs: Sequence[Constant | None]) -> None:
    arrays = [value.array for value in inputs if value is not None]
    if node.op == "ConstantOfShape":
        size = math.prod(int(n) for n in arrays[0].ravel())
    elif node.op in ("Expand", "Tile"):
        size = math.prod(max(1, int(n)) for n in arrays[1].ravel()) * arrays[0].size
    elif node.op == "Resize":
        factors = float(np.prod(arrays[-1].astype(np.float64)))
        size = int(factors if arrays[-1].dtype.kind == "i" else factors * arrays[0].size)
    elif node.op == "Range":
        start, limit, delta = (float(a.ravel()[0].astype(np.float64)) for a in arrays)
        size = int(abs((limit - start) / delta)) if delta else 0
    elif node.op in _FOLDABLE:
        size = math.prod(np.broadcast_shapes(*(a.shape for a in arrays))) if node.op in _BROADCAST else 0
    else:
        raise RefusalError("this operator is not supported on constants")
    if size > MAX_CONSTANT_ELEMENTS:
        raise RefusalError(f"a constant of {size} elements is too large")


def constant_of(node: GraphNode) -> Constant:
    """Return the value of a ``Constant`` node."""
    for name, value in node.attributes.items():
        if name == "value" and isinstance(value, np.ndarray):
            return Constant(value)
        if name in ("value_float", "value_floats"):
            return Constant(np.asarray(value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return Constant(np.asarray(value, dtype=np.int64))
    raise RefusalError("expected a constant of numbers")
