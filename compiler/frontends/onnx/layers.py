"""Operators that are layers: matrix products, convolutions, pooling, normalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .executor import Executor, Handler, Inputs
from .graph import Constant, GraphNode
from .operands import batched, integers_of, map_steps, source_text, tensor_of
from .reductions import window_over
from .steps import StepNode, Synapse
from .values import RefusalError, Series, Tensor, Value, axis_of, single


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
    if isinstance(weight, Constant) and weight.array.ndim > 2:
        weight = _same_matrix(weight)
    if not isinstance(weight, Constant) or weight.array.ndim != 2:
        raise RefusalError("expected a constant matrix as second factor")
    return [_linear(executor, node, _not_over_time(executor, inputs[0], node), weight, None, False)]


def _not_over_time(executor: Executor, value: Value | None, node: GraphNode) -> Tensor:
    """Return a tensor whose last dimension is not time."""
    if isinstance(value, Constant):
        return batched(executor, value, source_text(node))
    x = single(tensor_of(value))
    assert isinstance(x, StepNode | Series)
    if isinstance(x, Series) and x.axis == len(x.shape) - 1:
        raise RefusalError("a matrix product over time steps")
    return x


def _same_matrix(weight: Constant) -> Constant:
    """Return the matrix that a constant of more dimensions repeats."""
    matrices = weight.array.reshape(-1, *weight.shape[-2:])
    if (matrices != matrices[0]).any():
        raise RefusalError("a product with other weights in every time step or sample")
    return Constant(matrices[0], weight.name)


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
        step, around = _unpadded(step)
        window = _window(node, tuple(kernel), tuple(step.shape[2:]), around)
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


def _unpadded(step: StepNode) -> tuple[StepNode, tuple[int, ...]]:
    """Return what zeros were put around, and how many in front and behind, by dimension."""
    if step.op != "pad":
        return step, (0,) * 2 * (len(step.shape) - 2)
    return step.args[0], tuple(int(str(n)) for n in step.key)


def _window(
    node: GraphNode, kernel: tuple[int, ...], sizes: tuple[int, ...], around: tuple[int, ...] | None = None
) -> _Window:
    """Return the window over maps of ``sizes``, which have ``around`` zeros around them before the node pads them."""
    rank = len(kernel)
    stride = node.integers("strides", (1,) * rank)
    dilation = node.integers("dilations", (1,) * rank)
    pads = node.integers("pads", (0,) * 2 * rank)
    around = around or (0,) * 2 * rank
    sizes = tuple(size + around[axis] + around[axis + rank] for axis, size in enumerate(sizes))
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
    pads = tuple(a + b for a, b in zip(pads, around, strict=True))
    return _Window(kernel, stride, pads, dilation, tuple(result))


def _pool(op: str) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        x = batched(executor, inputs[0], source_text(node))
        kernel = node.integers("kernel_shape", ())

        def apply(step: StepNode) -> StepNode:
            around = None
            if op == "avgpool":
                step, around = _unpadded(step)
            window = _window(node, kernel, step.shape[2:], around)
            own = window.pads if around is None else _difference(window.pads, around)
            if op == "avgpool" and any(own) and not node.integer("count_include_pad", 0):
                raise RefusalError("an average that leaves its padding out is not supported yet")
            key = (window.kernel, window.stride, window.pads, window.dilation)
            return executor.steps.node(
                op, [step], (*step.shape[:2], *window.result), source_text(node), key=key, scope=node.scope
            )

        return [map_steps(x, apply)]

    return handle


def _difference(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _global_pool(op: str) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        def apply(step: StepNode) -> StepNode:
            return window_over(executor, op, step, step.shape[2:], source_text(node), node.scope)

        return [map_steps(batched(executor, inputs[0], source_text(node)), apply)]

    return handle


def _pad(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    """Put zeros around maps; the layer behind takes them in."""
    x = batched(executor, inputs[0], source_text(node))
    rank = len(x.shape)
    pads = integers_of(inputs[1], "pads") if len(inputs) > 1 else list(node.integers("pads", ()))
    value = inputs[2] if len(inputs) > 2 else None
    axes = [axis_of(axis, rank) for axis in integers_of(inputs[3], "axes")] if len(inputs) > 3 else list(range(rank))
    if value is not None and (not isinstance(value, Constant) or value.uniform != 0.0):
        raise RefusalError("a padding with numbers other than 0")
    if node.text("mode", "constant") != "constant":
        raise RefusalError(f"a padding of mode {node.text('mode', '')}")
    amounts = [[0, 0] for _ in range(rank)]
    for place, axis in enumerate(axes):
        amounts[axis] = [pads[place], pads[place + len(axes)]]
    if any(n < 0 for pair in amounts for n in pair) or any(n for pair in amounts[:2] for n in pair):
        raise RefusalError("a padding of samples or channels, or one that cuts off")
    key = tuple(pair[side] for side in (0, 1) for pair in amounts[2:])
    if not any(key):
        return [x]

    def apply(step: StepNode) -> StepNode:
        shape = tuple(size + sum(pair) for size, pair in zip(step.shape, amounts, strict=True))
        return executor.steps.node("pad", [step], shape, source_text(node), key=key, scope=node.scope)

    return [map_steps(x, apply)]


def _batch_norm(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    if node.integer("training_mode", 0) or (executor.opset < 14 and len(node.outputs) > 1):
        executor.note(
            "batch normalization in training mode: the file normalizes by the statistics of its batch; here this is "
            "done in training alone, for all time steps at once, and by running statistics otherwise"
        )
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

    # running statistics are not computed: every time step starts from those of the file
    return [map_steps(batched(executor, inputs[0], source_text(node)), apply), mean, variance, mean, variance]


def _einsum(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    """Handle products of the last dimension with a constant matrix, in any order of the factors."""
    terms, arrow, result = node.text("equation", "").replace(" ", "").partition("->")
    factors = list(zip(terms.split(","), inputs, strict=True))
    if len(factors) == 2 and isinstance(factors[0][1], Constant):
        factors.reverse()
    (letters, x), (matrix, weight) = factors if len(factors) == 2 else (("", None), ("", None))
    if isinstance(weight, Constant) and len(matrix) == 2 and arrow:
        for outputs_first in (True, False):
            outer, inner = (matrix[0], matrix[1]) if outputs_first else (matrix[1], matrix[0])
            if letters.endswith(inner) and outer not in letters and result == letters[:-1] + outer:
                return [_linear(executor, node, _not_over_time(executor, x, node), weight, None, outputs_first)]
    raise RefusalError("expected the product of the last dimension with a constant matrix")


LAYERS: dict[str, Handler] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "AveragePool": _pool("avgpool"),
    "MaxPool": _pool("maxpool"),
    "GlobalAveragePool": _global_pool("avgpool"),
    "GlobalMaxPool": _global_pool("maxpool"),
    "BatchNormalization": _batch_norm,
    "Einsum": _einsum,
    "Pad": _pad,
}
