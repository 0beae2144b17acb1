"""Elementwise operators, and the spiking operators of custom domains, which are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from .executor import Executor, Handler, Inputs
from .graph import Constant, GraphNode
from .operands import known_array, map_steps, pointwise, source_text, tensor_of
from .steps import Key, StepNode
from .values import RefusalError, Refused, Series, Value


def _elementwise(op: str, order: Sequence[int] = (0, 1)) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        values = [value for value in inputs if value is not None]
        return [pointwise(executor, op, [values[k] for k in order], node)]

    return handle


def _unary(op: str) -> Handler:
    return _elementwise(op, (0,))


def _chain(op: str) -> Handler:
    """Handle an operator of any number of inputs."""

    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        result, *others = [value for value in inputs if value is not None]
        for other in others:
            result = pointwise(executor, op, [result, other], node)
        return [result]

    return handle


def _other(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    values = [value for value in inputs if value is not None]
    return [pointwise(executor, "other", values, node, (node.op,))]


def _add(executor: Executor, node: GraphNode, inputs: Inputs) -> Sequence[Value]:
    fused = _bias(executor, node, inputs)
    return [fused] if fused is not None else _elementwise("add")(executor, node, inputs)


def _bias(executor: Executor, node: GraphNode, inputs: Inputs) -> Value | None:
    """Return a matrix product with its bias, where this addition is one."""
    constant = next((value for value in inputs if isinstance(value, Constant)), None)
    product = next((value for value in inputs if isinstance(value, StepNode | Series)), None)
    if constant is None or product is None or constant.array.ndim != 1 or constant.array.dtype.kind != "f":
        return None
    nodes = product.nodes if isinstance(product, Series) else (product,)
    if any(n.op != "linear" or n.synapse is None or n.synapse.bias or n.shape[-1:] != constant.shape for n in nodes):
        return None

    def add(step: StepNode) -> StepNode:
        assert step.synapse is not None
        key = (*step.key, constant.digest)
        synapse = replace(step.synapse, bias=constant)
        return executor.steps.node(
            "linear", step.args, step.shape, step.source, key=key, scope=step.scope or node.scope, synapse=synapse
        )

    return map_steps(product, add)


def _sign(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x, zero = tensor_of(inputs[0]), Constant(np.zeros(()))
    above = pointwise(executor, "gt", [x, zero], node)
    below = pointwise(executor, "gt", [zero, x], node)
    return [pointwise(executor, "sub", [above, below], node)]


def _clip(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    low = inputs[1] if len(inputs) > 1 else None
    high = inputs[2] if len(inputs) > 2 else None
    low = Constant(np.asarray(node.number("min", 0.0))) if "min" in node.attributes else low
    high = Constant(np.asarray(node.number("max", 0.0))) if "max" in node.attributes else high
    result: Value = tensor_of(inputs[0])
    if low is not None:
        result = pointwise(executor, "max", [result, low], node)
    if high is not None:
        result = pointwise(executor, "min", [result, high], node)
    return [result]


def _cast(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    value, to = tensor_of(inputs[0]), node.integer("to", 1)
    nodes = value.nodes if isinstance(value, Series) else (value,)
    if all(_is_binary(n) for n in nodes) or to in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return [value]
    if to == onnx.TensorProto.BOOL:
        return [pointwise(executor, "ne", [value, Constant(np.zeros(()))], node)]
    if to in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        raise RefusalError("half precision inside the graph", "export in float32 and compile with precision='fp16'")
    return [pointwise(executor, "trunc", [value], node)]


def _is_binary(node: StepNode) -> bool:
    return node.op in ("gt", "ge", "eq", "not", "and", "or", "ne")


def _same(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    value = inputs[0]
    if value is None:
        raise RefusalError("expected an input, found none")
    return [value]


def _dropout(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    """Handle dropout: nothing in evaluation mode, a layer in training mode, whose mask nothing else may read."""
    training = inputs[2] if len(inputs) > 2 else None
    if training is None or not bool(known_array(training, "training mode").ravel()[0]):
        return [*_same(executor, node, inputs), Refused()]
    ratio = 0.5 if inputs[1] is None else float(known_array(inputs[1], "ratio").ravel()[0])
    executor.note("dropout in training mode: values are dropped in training only, the file does it always")

    def apply(step: StepNode) -> StepNode:
        key = (ratio,)
        return executor.steps.node("dropout", [step], step.shape, source_text(node), key=key, scope=node.scope)

    return [map_steps(tensor_of(inputs[0]), apply), Refused()]


def _pow(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    exponent = inputs[1].uniform if isinstance(inputs[1], Constant) else None
    if exponent not in (1.0, 2.0, 3.0):
        return _other(executor, node, inputs)
    x = tensor_of(inputs[0])
    result: Value = x
    for _ in range(int(exponent) - 1):
        result = pointwise(executor, "mul", [result, x], node)
    return [result]


def _heaviside(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    key = _surrogate_key(node)
    return [pointwise(executor, "ge", [tensor_of(inputs[0]), Constant(np.zeros(()))], node, key)]


def _surrogate_key(node: GraphNode) -> Key:
    kind = node.text("surrogate", "rect")
    if kind not in ("rect", "rectangular", "triangle", "triangular"):
        raise RefusalError(f"expected surrogate rect or triangle, found {kind}")
    width = node.number("surrogate_width", 1.0)
    if not (math.isfinite(width) and width > 0):
        raise RefusalError(f"expected a positive surrogate_width, found {width}")
    return ("surrogate", "triangular" if kind.startswith("tri") else "rectangular", width / 2)


def _lif_step(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    """``s, u = LIFStep(x, u, s)``: ``u = decay * reset(u, s) + x``, ``s = u >= v_threshold``."""
    known = {"decay", "v_threshold", "reset", "surrogate", "surrogate_width", "v_reset"}
    strange = sorted(set(node.attributes) - known)
    if strange or "decay" not in node.attributes or "v_threshold" not in node.attributes:
        found = f"found {strange[0]}" if strange else "found none"
        raise RefusalError(f"expected the attributes decay and v_threshold and no unknown one, {found}")
    x, u, s = (value for value in inputs[:3] if value is not None)
    decay, theta = (Constant(np.asarray(np.float32(node.number(n, 0.0)))) for n in ("decay", "v_threshold"))
    after = _after_reset(executor, node, u, s, theta)
    leak = fold_or(executor, "mul", [after, decay], node)
    new = fold_or(executor, "add", [leak, x], node)
    fires = pointwise(executor, "ge", [new, theta], node, _surrogate_key(node))
    return [fires, new]


def _after_reset(executor: Executor, node: GraphNode, u: Value, s: Value, theta: Constant) -> Value:
    reset = node.text("reset", "hard")
    if reset == "none":
        return u
    if reset == "soft":
        return fold_or(executor, "sub", [u, fold_or(executor, "mul", [s, theta], node)], node)
    if reset != "hard":
        raise RefusalError(f"expected reset hard, soft or none, found {reset}")
    target = Constant(np.asarray(np.float32(node.number("v_reset", 0.0))))
    kept = fold_or(executor, "sub", [Constant(np.ones((), np.float32)), s], node)
    return fold_or(
        executor,
        "add",
        [fold_or(executor, "mul", [u, kept], node), fold_or(executor, "mul", [s, target], node)],
        node,
    )


def fold_or(executor: Executor, op: str, values: Sequence[Value], node: GraphNode) -> Value:
    """Apply an elementwise operator, at once where all inputs are constants."""
    arrays = [value.array for value in values if isinstance(value, Constant)]
    if len(arrays) < len(values):
        return pointwise(executor, op, values, node)
    function = {"mul": np.multiply, "add": np.add, "sub": np.subtract}[op]
    return Constant(np.asarray(function(arrays[0], arrays[1])))


_NONLINEAR = "Sqrt Exp Log Reciprocal Sigmoid HardSigmoid Tanh Erf Softplus Mod LeakyRelu Elu Selu Gelu PRelu"

ELEMENTWISE: dict[str, Handler] = {
    "Add": _add,
    "Sub": _elementwise("sub"),
    "Mul": _elementwise("mul"),
    "Div": _elementwise("div"),
    "Neg": _unary("neg"),
    "Greater": _elementwise("gt"),
    "GreaterOrEqual": _elementwise("ge"),
    "Less": _elementwise("gt", (1, 0)),
    "LessOrEqual": _elementwise("ge", (1, 0)),
    "Equal": _elementwise("eq"),
    "Not": _unary("not"),
    "And": _elementwise("and"),
    "Or": _elementwise("or"),
    "Xor": _elementwise("ne"),
    "Where": _elementwise("where", (0, 1, 2)),
    "Relu": _unary("relu"),
    "Abs": _unary("abs"),
    "Sign": _sign,
    "Clip": _clip,
    "Max": _chain("max"),
    "Min": _chain("min"),
    "Sum": _chain("add"),
    "Round": _unary("round"),
    "Floor": _unary("floor"),
    "Ceil": _unary("ceil"),
    "Cast": _cast,
    "CastLike": _same,
    "Identity": _same,
    "Dropout": _dropout,
    "Pow": _pow,
    "snn::LIFStep": _lif_step,
    "snn::Heaviside": _heaviside,
    **dict.fromkeys(_NONLINEAR.split(), _other),
}
