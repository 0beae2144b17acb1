"""Operators that are layers: matrix products, convolutions, pooling, normalization, reductions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .executor import Executor, Handler, Inputs
from .graph import Constant, GraphNode
from .operands import batched, map_steps, source_text, tensor_of
from .shapes import axes_of
from .steps import StepNode, Synapse
from .values import RefusalError, Series, Tensor, Value, axis_of, reshape_features, single


def _gemm(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    if node.integer("transA", 0) or node.number("alpha", 1.0) != 1 or node.number("beta", 1.0) != 1:
        raise RefusalError("expected transA = 0 and alpha = beta = 1")
    x = batched(executor, inputs[0], source_text(node))
    weight = inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        raise RefusalError("expected constant weights")
    return [_linear(executor, node, x, weight, bias, bool(node.integer("transB", 0)))]


def _matmul(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    weight = inputs[1]
    if not isinstance(weight, Constant) or weight.array.ndim != 2:
        raise RefusalError("expected a constant matrix as second factor")
    x = single(tensor_of(inputs[0]))
    assert isinstance(x, StepNode | Series)
    if isinstance(x, Series) and x.axis == len(x.shape) - 1:
        raise RefusalError("a matrix product over time steps")
    return [_linear(executor, node, x, weight, None, False)]


def _linear(
    executor: Executor, node: GraphNode, x: Tensor, weight: Constant, bias: Constant | None, outputs_first: bool
) -> Value:
    outputs, inner = weight.shape if outputs_first else weight.shape[::-1]
    if bias is not None and bias.shape != (outputs,):
        if bias.array.size not in (1, outputs):
            raise RefusalError(f"expected a bias of {outputs} numbers, found shape {list(bias.shape)}")
        bias = Constant(np.broadcast_to(bias.array.ravel(), (outputs,)).copy(), bias.name)
    stored = Constant(weight.array.T, weight.name) if weight.transposed else weight
    synapse = Synapse(stored, bias, inputs_first=outputs_first == weight.transposed)
    key = (weight.digest, outputs_first, *((bias.digest,) if bias is not None else ()))

    def apply(step: StepNode) -> StepNode:
        if step.shape[-1] != inner or len(step.shape) < 2:
            raise ValueError(f"a weight for {inner} inputs meets {list(step.shape)}")
        shape = (*step.shape[:-1], outputs)
        return executor.steps.node(
            "linear", [step], shape, source_text(node), key=key, scope=node.scope, synapse=synapse
        )

    return map_steps(x, apply)


def _conv(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = batched(executor, inputs[0], source_text(node))
    weight = inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        raise RefusalError("expected constant weights")
    outputs, inner, *kernel = weight.shape
    group = node.integer("group", 1)
    synapse = Synapse(weight, bias)
    digests = (weight.digest, *((bias.digest,) if bias is not None else ()))

    def apply(step: StepNode) -> StepNode:
        batch, channels, *sizes = step.shape
        if channels != inner * group or len(sizes) != len(kernel) or (bias is not None and bias.shape != (outputs,)):
            raise ValueError(f"weights {list(weight.shape)} meet an input {list(step.shape)}")
        window = _window(node, tuple(kernel), tuple(sizes))
        shape = (batch, outputs, *window.result)
        key = (*digests, window.kernel, window.stride, window.pads, window.dilation, group)
        return executor.steps.node("conv", [step], shape, source_text(node), key=key, scope=node.scope, synapse=synapse)

    return [map_steps(x, apply)]


@dataclass(frozen=True)
class _Window:
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    result: tuple[int, ...]


def _window(node: GraphNode, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> _Window:
    rank = len(kernel)
    stride = node.integers("strides", (1,) * rank)
    dilation = node.integers("dilations", (1,) * rank)
    pads = node.integers("pads", (0,) * 2 * rank)
    if not len(stride) == len(dilation) == rank or len(pads) != 2 * rank or len(sizes) != rank or min(stride) < 1:
        raise ValueError("the attributes of the window do not fit its input")
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    mode = node.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (-(-size // s) - 1) * s + span - size) for size, s, span in zip(sizes, stride, spans, strict=True)
        ]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        pads = small + large if mode == "SAME_UPPER" else large + small
    elif mode == "VALID":
        pads = (0,) * 2 * rank
    up = node.integer("ceil_mode", 0)
    result = []
    for axis, (size, span, s) in enumerate(zip(sizes, spans, stride, strict=True)):
        room = size + pads[axis] + pads[axis + rank] - span
        if room < 0 or span < 1:
            raise ValueError(f"a window of {span} meets an input of {size}")
        if up and room % s:
            raise RefusalError("windows that reach over the edge (ceil_mode)")
        result.append(room // s + 1)
    return _Window(kernel, stride, pads, dilation, tuple(result))


def _pool(op: str) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        x = batched(executor, inputs[0], source_text(node))
        kernel = node.integers("kernel_shape", ())

        def apply(step: StepNode) -> StepNode:
            window = _window(node, kernel, step.shape[2:])
            if op == "avgpool" and any(window.pads) and not node.integer("count_include_pad", 0):
                raise RefusalError("an average that leaves its padding out is not supported yet")
            key = (window.kernel, window.stride, window.pads, window.dilation)
            return executor.steps.node(
                op, [step], (*step.shape[:2], *window.result), source_text(node), key=key, scope=node.scope
            )

        return [map_steps(x, apply)]

    return handle


def _global_pool(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [map_steps(batched(executor, inputs[0], source_text(node)), lambda step: _whole_map(executor, node, step))]


def _whole_map(executor: Executor, node: GraphNode, step: StepNode) -> StepNode:
    sizes = step.shape[2:]
    key = (sizes, sizes, (0,) * 2 * len(sizes), (1,) * len(sizes))
    shape = (*step.shape[:2], *(1 for _ in sizes))
    return executor.steps.node("avgpool", [step], shape, source_text(node), key=key, scope=node.scope)


def _batch_norm(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    if node.integer("training_mode", 0):
        raise RefusalError("batch normalization in training mode", "export with torch.onnx.TrainingMode.EVAL")
    parts = [value for value in inputs[1:5] if isinstance(value, Constant)]
    if len(parts) != 4:
        raise RefusalError("expected constant scale, bias, mean and variance")
    scale, shift, mean, variance = parts
    key = (*(part.digest for part in parts), node.number("epsilon", 1e-5), node.number("momentum", 0.9))
    synapse = Synapse(scale, shift, statistics=(mean, variance))

    def apply(step: StepNode) -> StepNode:
        if len(step.shape) < 2 or any(part.shape != step.shape[1:2] for part in parts):
            raise ValueError(f"normalization by {list(scale.shape)} meets an input {list(step.shape)}")
        return executor.steps.node(
            "batchnorm", [step], step.shape, source_text(node), key=key, scope=node.scope, synapse=synapse
        )

    return [map_steps(batched(executor, inputs[0], source_text(node)), apply)]


def _reduce(kind: str) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        x = tensor_of(inputs[0])
        rank, keep = len(x.shape), bool(node.integer("keepdims", 1))
        axes = axes_of(node, inputs)
        chosen = sorted(axis_of(axis, rank) for axis in axes) if axes else list(range(rank))
        if isinstance(x, Series) and chosen == [x.axis]:
            result = executor.steps.node(f"time_{kind}", x.nodes, x.nodes[0].shape, source_text(node), scope=node.scope)
            return [Series((result,), x.axis) if keep else result]
        if kind != "mean" or chosen != list(range(rank - len(chosen), rank)):
            raise RefusalError("a reduction that is neither over time nor a mean over maps")

        def apply(step: StepNode) -> StepNode:
            if len(step.shape) - len(chosen) != 2:
                raise RefusalError("a mean that is not over whole maps")
            pooled = _whole_map(executor, node, step)
            return pooled if keep else reshape_features(executor.steps, pooled, step.shape[1:2], source_text(node))

        return [map_steps(x, apply)]

    return handle


LAYERS: dict[str, Handler] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "AveragePool": _pool("avgpool"),
    "MaxPool": _pool("maxpool"),
    "GlobalAveragePool": _global_pool,
    "BatchNormalization": _batch_norm,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("max"),
}
