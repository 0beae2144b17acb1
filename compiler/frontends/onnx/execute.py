"""Executes a graph on time steps: constants are computed, everything else becomes nodes of :mod:`steps`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from .graph import Array, Constant, Graph, GraphNode
from .steps import Key, StepNode, Steps, Synapse
from .values import (
    RefusalError,
    Refused,
    Series,
    Tensor,
    TensorList,
    Value,
    axis_of,
    reshape,
    reshape_features,
    series,
    shape_of,
    single,
    transpose,
)

MAX_STEPS = 4096
MAX_CONSTANT_ELEMENTS = 1 << 26
Inputs = list[Value | None]


@dataclass(frozen=True)
class Problem:
    """A node that cannot be imported, and why."""

    node: str
    op: str
    reason: str
    hint: str = ""


@dataclass
class Scope:
    """Values by name; the body of a loop sees what is around it."""

    values: dict[str, Value]
    outer: Scope | None = None

    def get(self, name: str) -> Value:
        """Return a value; raises ValueError when nothing has that name."""
        if name in self.values:
            return self.values[name]
        if self.outer is None:
            raise ValueError(f"no node gives {name!r}")
        return self.outer.get(name)


@dataclass
class Executor:
    """One execution: ``steps`` collects the nodes, ``problems`` what is refused."""

    opset: int
    steps: Steps = field(default_factory=Steps)
    problems: list[Problem] = field(default_factory=list)

    def run(self, graph: Graph, arguments: Mapping[str, Value], outer: Scope | None = None) -> list[Value]:
        """Return the values of the graph's outputs."""
        scope = Scope({**graph.initializers, **arguments}, outer)
        for node in graph.nodes:
            scope.values.update(zip(node.outputs, self._results(node, scope), strict=False))
        return [scope.get(name) for name in graph.outputs]

    def refuse(self, node: str, op: str, reason: str, hint: str = "") -> None:
        """Note a refusal once."""
        if not any((p.op, p.reason) == (op, reason) for p in self.problems):
            self.problems.append(Problem(node, op, reason, hint))

    def _results(self, node: GraphNode, scope: Scope) -> Sequence[Value]:
        refused = [Refused()] * len(node.outputs)
        try:
            inputs: Inputs = [scope.get(name) if name else None for name in node.inputs]
            if any(isinstance(value, Refused) for value in inputs):
                return refused
            return self._apply(node, inputs, scope)
        except RefusalError as error:
            self.refuse(node.label, node.op, str(error), error.hint)
        except RecursionError:
            self.refuse(node.label, node.op, "its inputs are nested too deeply")
        except Exception as error:  # wrong attributes and shapes show as any type of error
            self.refuse(node.label, node.op, f"its inputs or attributes do not fit ({_sentence(error)})")
        return refused

    def _apply(self, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
        if node.op in _WITH_BODY:
            return _WITH_BODY[node.op](self, node, inputs, scope)
        if node.op == "Constant":
            return [_constant(node)]
        if node.op in _RANDOM:
            raise RefusalError("random numbers inside the graph", "export the network without its encoder")
        handler = _HANDLERS.get(node.op)
        if node.op not in _ON_LISTS and all(value is None or isinstance(value, Constant) for value in inputs):
            constants = [value for value in inputs if value is None or isinstance(value, Constant)]
            return fold(node, constants, self.opset)
        if handler is None:
            hint = "export the operator's own computation instead" if "::" in node.op else ""
            raise RefusalError("this operator is not supported", hint)
        return handler(self, node, inputs)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


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
    proto = helper.make_node(node.op, names, outputs, **_plain(node.attributes))
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
    elif node.op == "Range":
        start, limit, delta = (float(a.ravel()[0].astype(np.float64)) for a in arrays)
        size = int(abs((limit - start) / delta)) if delta else 0
    elif node.op in _FOLDABLE:
        size = math.prod(np.broadcast_shapes(*(a.shape for a in arrays))) if node.op in _BROADCAST else 0
    else:
        raise RefusalError("this operator is not supported on constants")
    if size > MAX_CONSTANT_ELEMENTS:
        raise RefusalError(f"a constant of {size} elements is too large")


def _constant(node: GraphNode) -> Constant:
    for name, value in node.attributes.items():
        if name == "value" and isinstance(value, np.ndarray):
            return Constant(value)
        if name in ("value_float", "value_floats"):
            return Constant(np.asarray(value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return Constant(np.asarray(value, dtype=np.int64))
    raise RefusalError("expected a constant of numbers")


def _tensor(value: Value | None) -> Tensor:
    if not isinstance(value, StepNode | Series):
        raise RefusalError("expected an input that depends on the network's input, found a constant")
    return value


def _known(value: Value | None, what: str) -> Array:
    if not isinstance(value, Constant):
        raise RefusalError(f"expected a constant as {what}")
    return value.array


def _integers(value: Value | None, what: str) -> list[int]:
    return [int(v) for v in _known(value, what).ravel()]


def _step(executor: Executor, value: Value | None, source: str) -> StepNode | Series:
    """Return a value as steps with the batch first: one step, or folded ones."""
    tensor = single(_tensor(value))
    assert isinstance(tensor, StepNode | Series)
    if isinstance(tensor, Series) and tensor.axis > 0 and len(tensor.nodes) == 1:
        node = tensor.nodes[0]
        features = [*node.shape[1 : tensor.axis], 1, *node.shape[tensor.axis :]]
        return reshape_features(executor.steps, node, features, source)
    if isinstance(tensor, Series) and tensor.axis >= 0:
        raise RefusalError("expected one time step, or time folded into the batch, found a separate time dimension")
    return tensor


def _map(value: StepNode | Series, function: Callable[[StepNode], StepNode]) -> Value:
    if isinstance(value, StepNode):
        return function(value)
    return Series(tuple(function(node) for node in value.nodes), value.axis)


def _source(node: GraphNode) -> str:
    return f"{node.label} ({node.op})"


def _lift(executor: Executor, values: Sequence[Value], source: str) -> tuple[Series | None, list[list[StepNode]]]:
    """Return the operands of every step, and the series whose layout the result has (None: a single step)."""
    found = [value for value in values if isinstance(value, Series)]
    longest = max(found, key=lambda s: len(s.nodes), default=None)
    if longest is None:
        return None, [[_operand(executor, value, source) for value in values]]
    count = len(longest.nodes)
    if any(s.axis != longest.axis or len(s.nodes) not in (1, count) for s in found):
        raise RefusalError("its inputs have their time steps in different places")
    rank = len(longest.shape)
    columns = []
    for value in values:
        if isinstance(value, Series):
            columns.append(list(value.nodes) * (count // len(value.nodes)))
        elif isinstance(value, Constant):
            parts = _constant_steps(value, longest.axis, rank, count)
            columns.append([executor.steps.constant(part, source) for part in parts])
        elif isinstance(value, StepNode) and longest.axis == 0:
            columns.append([value] * count)
        else:
            raise RefusalError("it combines a single time step with all of them")
    return longest, [list(operands) for operands in zip(*columns, strict=True)]


def _operand(executor: Executor, value: Value, source: str) -> StepNode:
    if isinstance(value, Constant):
        return executor.steps.constant(value, source)
    if not isinstance(value, StepNode):
        raise RefusalError("expected tensors, found a sequence")
    return value


def _constant_steps(value: Constant, axis: int, rank: int, count: int) -> list[Constant]:
    place = axis - (rank - value.array.ndim)
    if value.uniform is not None or place < 0 or axis < 0:
        if axis < 0 and value.uniform is None and value.array.ndim == rank and value.array.shape[0] != 1:
            raise RefusalError("a constant that differs between samples or time steps is not supported")
        return [value] * count
    if value.array.shape[place] == 1:
        return [Constant(value.array.squeeze(place))] * count
    return [Constant(np.take(value.array, t, axis=place)) for t in range(count)]


def _pointwise(executor: Executor, op: str, values: Sequence[Value], node: GraphNode, key: Key = ()) -> Value:
    """Apply an elementwise operator of :mod:`steps`."""
    source = _source(node)
    layout, rows = _lift(executor, values, source)
    results = []
    for operands in rows:
        shape = np.broadcast_shapes(*(o.shape for o in operands))
        if len(shape) > max(len(o.shape) for o in operands if o.op != "const"):
            raise RefusalError("it adds dimensions by broadcasting")
        results.append(executor.steps.node(op, operands, tuple(shape), source, key=key, scope=node.scope))
    return results[0] if layout is None else Series(tuple(results), layout.axis)


def _elementwise(op: str, order: Sequence[int] = (0, 1)) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        values = [value for value in inputs if value is not None]
        return [_pointwise(executor, op, [values[k] for k in order], node)]

    return handle


def _unary(op: str) -> Handler:
    return _elementwise(op, (0,))


def _chain(op: str) -> Handler:
    """Handle an operator of any number of inputs."""

    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        result, *others = [value for value in inputs if value is not None]
        for other in others:
            result = _pointwise(executor, op, [result, other], node)
        return [result]

    return handle


def _other(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    values = [value for value in inputs if value is not None]
    return [_pointwise(executor, "other", values, node, (node.op,))]


def _add(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
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

    return _map(product, add)


def _sign(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x, zero = _tensor(inputs[0]), Constant(np.zeros(()))
    above = _pointwise(executor, "gt", [x, zero], node)
    below = _pointwise(executor, "gt", [zero, x], node)
    return [_pointwise(executor, "sub", [above, below], node)]


def _clip(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    low = inputs[1] if len(inputs) > 1 else None
    high = inputs[2] if len(inputs) > 2 else None
    low = Constant(np.asarray(node.number("min", 0.0))) if "min" in node.attributes else low
    high = Constant(np.asarray(node.number("max", 0.0))) if "max" in node.attributes else high
    result: Value = _tensor(inputs[0])
    if low is not None:
        result = _pointwise(executor, "max", [result, low], node)
    if high is not None:
        result = _pointwise(executor, "min", [result, high], node)
    return [result]


def _cast(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    value, to = _tensor(inputs[0]), node.integer("to", 1)
    nodes = value.nodes if isinstance(value, Series) else (value,)
    if all(_is_binary(n) for n in nodes) or to in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return [value]
    if to == onnx.TensorProto.BOOL:
        return [_pointwise(executor, "ne", [value, Constant(np.zeros(()))], node)]
    if to in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        raise RefusalError("half precision inside the graph", "export in float32 and compile with precision='fp16'")
    return [_pointwise(executor, "other", [value], node, ("Cast to an integer",))]


def _is_binary(node: StepNode) -> bool:
    return node.op in ("gt", "ge", "eq", "not", "and", "or", "ne")


def _same(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    value = inputs[0]
    if value is None:
        raise RefusalError("expected an input, found none")
    return [value]


def _dropout(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    training = inputs[2] if len(inputs) > 2 else None
    if training is not None and bool(_known(training, "training mode").ravel()[0]):
        raise RefusalError("dropout in training mode", "export with torch.onnx.TrainingMode.EVAL")
    return _same(executor, node, inputs)


def _heaviside(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    key = _surrogate_key(node)
    return [_pointwise(executor, "ge", [_tensor(inputs[0]), Constant(np.zeros(()))], node, key)]


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
    fires = _pointwise(executor, "ge", [new, theta], node, _surrogate_key(node))
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
        return _pointwise(executor, op, values, node)
    function = {"mul": np.multiply, "add": np.add, "sub": np.subtract}[op]
    return Constant(np.asarray(function(arrays[0], arrays[1])))


def _gemm(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    if node.integer("transA", 0) or node.number("alpha", 1.0) != 1 or node.number("beta", 1.0) != 1:
        raise RefusalError("expected transA = 0 and alpha = beta = 1")
    x = _step(executor, inputs[0], _source(node))
    weight = inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        raise RefusalError("expected constant weights")
    return [_linear(executor, node, x, weight, bias, bool(node.integer("transB", 0)))]


def _matmul(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    weight = inputs[1]
    if not isinstance(weight, Constant) or weight.array.ndim != 2:
        raise RefusalError("expected a constant matrix as second factor")
    x = single(_tensor(inputs[0]))
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
            "linear", [step], shape, _source(node), key=key, scope=node.scope, synapse=synapse
        )

    return _map(x, apply)


def _conv(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _step(executor, inputs[0], _source(node))
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
        return executor.steps.node("conv", [step], shape, _source(node), key=key, scope=node.scope, synapse=synapse)

    return [_map(x, apply)]


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
        x = _step(executor, inputs[0], _source(node))
        kernel = node.integers("kernel_shape", ())

        def apply(step: StepNode) -> StepNode:
            window = _window(node, kernel, step.shape[2:])
            key = (window.kernel, window.stride, window.pads, window.dilation)
            return executor.steps.node(
                op, [step], (*step.shape[:2], *window.result), _source(node), key=key, scope=node.scope
            )

        return [_map(x, apply)]

    return handle


def _global_pool(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [_map(_step(executor, inputs[0], _source(node)), lambda step: _whole_map(executor, node, step))]


def _whole_map(executor: Executor, node: GraphNode, step: StepNode) -> StepNode:
    sizes = step.shape[2:]
    key = (sizes, sizes, (0,) * 2 * len(sizes), (1,) * len(sizes))
    shape = (*step.shape[:2], *(1 for _ in sizes))
    return executor.steps.node("avgpool", [step], shape, _source(node), key=key, scope=node.scope)


def _batch_norm(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    if node.integer("training_mode", 0):
        raise RefusalError("batch normalization in training mode", "export with torch.onnx.TrainingMode.EVAL")
    parts = [value for value in inputs[1:5] if isinstance(value, Constant)]
    if len(parts) != 4:
        raise RefusalError("expected constant scale, bias, mean and variance")
    key = (*(part.digest for part in parts), node.number("epsilon", 1e-5))

    def apply(step: StepNode) -> StepNode:
        return executor.steps.node("batchnorm", [step], step.shape, _source(node), key=key, scope=node.scope)

    return [_map(_step(executor, inputs[0], _source(node)), apply)]


def _shape(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    shape = shape_of(inputs[0] if inputs[0] is not None else Refused())
    end = node.integer("end", len(shape))
    return [Constant(np.asarray(shape[node.integer("start", 0) : end], dtype=np.int64))]


def _size(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [Constant(np.asarray(math.prod(_tensor(inputs[0]).shape), dtype=np.int64))]


def _reshape(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    target = _integers(inputs[1], "shape")
    if not node.integer("allowzero", 0):
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]
    if target.count(-1) == 1:
        target[target.index(-1)] = math.prod(x.shape) // max(1, -math.prod(target))
    return [reshape(executor.steps, x, target, _source(node))]


def _flatten(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    axis = node.integer("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    target = (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return [reshape(executor.steps, x, target, _source(node))]


def _axes(node: GraphNode, inputs: Inputs, place: int = 1) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.integers("axes", ()))
    if len(inputs) > place and inputs[place] is not None:
        return _integers(inputs[place], "axes")
    return None


def _unsqueeze(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    axes = _axes(node, inputs) or []
    if len(axes) != 1:
        raise RefusalError("expected one new dimension")
    axis = axis_of(axes[0], len(x.shape) + 1)
    if isinstance(x, StepNode):
        return [Series((x,), axis)]
    if x.axis < 0 or axis <= max(x.axis, 1):
        raise RefusalError("a new dimension before time or batch")
    position = axis - 1

    def apply(step: StepNode) -> StepNode:
        features = list(step.shape[1:])
        features.insert(position - 1, 1)
        return reshape_features(executor.steps, step, features, _source(node))

    return [_map(x, apply)]


def _squeeze(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    axes = _axes(node, inputs)
    rank = len(x.shape)
    if axes is None:
        raise RefusalError("expected the dimensions to remove")
    removed = sorted(axis_of(axis, rank) for axis in axes)
    if any(x.shape[axis] != 1 for axis in removed):
        raise ValueError("a dimension to remove is not 1")
    if isinstance(x, Series) and removed == [x.axis]:
        return [x.nodes[0]]
    return [reshape(executor.steps, x, [n for axis, n in enumerate(x.shape) if axis not in removed], _source(node))]


def _gather(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x, indices = _tensor(inputs[0]), _known(inputs[1], "indices")
    axis = axis_of(node.integer("axis", 0), len(x.shape))
    if not isinstance(x, Series) or axis != x.axis or indices.ndim > 1:
        raise RefusalError("a selection that is not along time", "time is the first dimension of the input, or the second")
    chosen = [x.nodes[int(index)] for index in indices.ravel()]
    return [chosen[0] if indices.ndim == 0 else series(chosen, axis)]


def _slice(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    starts, ends = (_integers(inputs[k], name) for k, name in ((1, "starts"), (2, "ends")))
    axes = (_axes(node, inputs, 3)) or list(range(len(starts)))
    steps = _integers(inputs[4], "steps") if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    nodes: tuple[StepNode, ...] | None = None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(axis, len(x.shape))
        chosen = range(x.shape[place])[start : _end(end, step) : step]
        if list(chosen) == list(range(x.shape[place])):
            continue
        if not isinstance(x, Series) or place != x.axis:
            raise RefusalError("a slice that is not along time")
        nodes = tuple(x.nodes[k] for k in chosen)
    if nodes is None:
        return [x]
    assert isinstance(x, Series)
    return [series(nodes, x.axis)]


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end <= -(1 << 31) else end


def _split(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    axis = axis_of(node.integer("axis", 0), len(x.shape))
    if not isinstance(x, Series) or axis != x.axis:
        raise RefusalError("a split that is not along time")
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = _integers(inputs[1], "sizes")
    else:
        part = -(-len(x.nodes) // len(node.outputs))
        sizes = list(node.integers("split", (part,) * len(node.outputs)))
    ends = np.cumsum(sizes)
    return [series(x.nodes[end - size : end], axis) for end, size in zip(ends.tolist(), sizes, strict=True)]


def _transpose(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    default = tuple(reversed(range(len(x.shape))))
    return [transpose(x, node.integers("perm", default))]


def _expand(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    target = _integers(inputs[1], "shape" if node.op == "Expand" else "repeats")
    if node.op == "Tile":
        if len(target) != len(x.shape):
            raise ValueError("expected one repeat per dimension")
        target = [n * r for n, r in zip(x.shape, target, strict=True)]
    if isinstance(x, StepNode) and len(target) == len(x.shape) + 1:
        x = Series((x,), 0)
    shape = np.broadcast_shapes(x.shape, tuple(target)) if node.op == "Expand" else tuple(target)
    if shape == x.shape:
        return [x]
    changed = [axis for axis, (a, b) in enumerate(zip(x.shape, shape, strict=False)) if a != b]
    if not isinstance(x, Series) or len(shape) != len(x.shape) or changed != [x.axis] or len(x.nodes) != 1:
        raise RefusalError("a repetition that is not along time")
    if shape[x.axis] > MAX_STEPS:
        raise RefusalError(f"expected at most {MAX_STEPS} time steps, found {shape[x.axis]}")
    return [Series(x.nodes * shape[x.axis], x.axis)]


def _concat(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [_join(executor, [value for value in inputs if value is not None], node, node.integer("axis", 0))]


def _join(executor: Executor, values: Sequence[Value], node: GraphNode, axis: int) -> Value:
    first = next(value for value in values if isinstance(value, StepNode | Series))
    axis = axis_of(axis, len(first.shape))
    if isinstance(first, Series) and (axis == first.axis or (first.axis == -1 and axis == 0)):
        nodes: list[StepNode] = []
        for value in values:
            if isinstance(value, Constant) and axis == first.axis:
                parts = _constant_steps(value, axis, len(first.shape), value.shape[axis])
                nodes += [executor.steps.constant(part, _source(node)) for part in parts]
            elif isinstance(value, Series) and value.axis == first.axis:
                nodes += value.nodes
            else:
                raise RefusalError("it joins tensors with their time steps in different places")
        return series(nodes, first.axis)
    if axis == 0 and all(isinstance(value, StepNode) for value in values):
        return series([value for value in values if isinstance(value, StepNode)], -1)
    layout, rows = _lift(executor, values, _source(node))
    place = axis if layout is None or layout.axis < 0 or axis < layout.axis else axis - 1
    if place == 0:
        raise RefusalError("it joins batches")
    results = []
    for operands in rows:
        width = sum(o.shape[place] for o in operands)
        shape = (*operands[0].shape[:place], width, *operands[0].shape[place + 1 :])
        results.append(executor.steps.node("concat", operands, shape, _source(node), key=(place,), scope=node.scope))
    return results[0] if layout is None else Series(tuple(results), layout.axis)


def _reduce(kind: str) -> Handler:
    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        x = _tensor(inputs[0])
        rank, keep = len(x.shape), bool(node.integer("keepdims", 1))
        axes = _axes(node, inputs)
        chosen = sorted(axis_of(axis, rank) for axis in axes) if axes else list(range(rank))
        if isinstance(x, Series) and chosen == [x.axis]:
            result = executor.steps.node(
                f"time_{kind}", x.nodes, x.nodes[0].shape, _source(node), scope=node.scope
            )
            return [Series((result,), x.axis) if keep else result]
        if kind != "mean" or chosen != list(range(rank - len(chosen), rank)):
            raise RefusalError("a reduction that is neither over time nor a mean over maps")

        def apply(step: StepNode) -> StepNode:
            if len(step.shape) - len(chosen) != 2:
                raise RefusalError("a mean that is not over whole maps")
            pooled = _whole_map(executor, node, step)
            return pooled if keep else reshape_features(executor.steps, pooled, step.shape[1:2], _source(node))

        return [_map(x, apply)]

    return handle


def _sequence_empty(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [TensorList(())]


def _sequence_construct(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [TensorList(tuple(value for value in inputs if value is not None))]


def _list(value: Value | None) -> TensorList:
    if not isinstance(value, TensorList):
        raise ValueError("expected a sequence of tensors")
    return value


def _sequence_insert(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    items, value = list(_list(inputs[0]).items), inputs[1]
    if value is None:
        raise ValueError("expected a tensor to insert")
    place = _integers(inputs[2], "position")[0] if len(inputs) > 2 and inputs[2] is not None else len(items)
    items.insert(place, value)
    return [TensorList(tuple(items))]


def _sequence_at(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [_list(inputs[0]).items[_integers(inputs[1], "position")[0]]]


def _sequence_length(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [Constant(np.asarray(len(_list(inputs[0]).items), dtype=np.int64))]


def _split_to_sequence(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = _tensor(inputs[0])
    axis = axis_of(node.integer("axis", 0), len(x.shape))
    if not isinstance(x, Series) or axis != x.axis:
        raise RefusalError("a split that is not along time")
    if len(inputs) > 1 and inputs[1] is not None and set(_integers(inputs[1], "sizes")) != {1}:
        raise RefusalError("expected parts of one time step")
    keep = bool(node.integer("keepdims", 1)) or (len(inputs) > 1 and inputs[1] is not None)
    return [TensorList(tuple(Series((n,), axis) if keep else n for n in x.nodes))]


def _concat_from_sequence(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    items = _list(inputs[0]).items
    if not items:
        raise RefusalError("expected at least one tensor to join")
    axis = node.integer("axis", 0)
    if not node.integer("new_axis", 0):
        return [_join(executor, items, node, axis)]
    return [_stack(executor, items, node, axis)]


def _stack(executor: Executor, items: Sequence[Value], node: GraphNode, axis: int) -> Value:
    nodes = [_operand(executor, item, _source(node)) for item in items]
    rank = max(len(n.shape) for n in nodes) + 1
    return series(nodes, axis_of(axis, rank))


def _scan(executor: Executor, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
    body, count = node.graph("body"), node.integer("num_scan_inputs", 1)
    values = [value for value in inputs if value is not None]
    states, scanned = values[: len(values) - count], values[len(values) - count :]
    if any(node.integers("scan_input_directions", (0,))) or any(node.integers("scan_output_directions", (0,))):
        raise RefusalError("a scan from the last step to the first")
    axes = node.integers("scan_input_axes", (0,) * count)
    columns = [_scanned(executor, value, axis, node) for value, axis in zip(scanned, axes, strict=True)]
    if len({len(column) for column in columns}) != 1 or len(body.inputs) != len(values):
        raise ValueError("the inputs of the scan do not fit its body")
    outputs: list[list[Value]] = []
    for rows in zip(*columns, strict=True):
        arguments = dict(zip((i.name for i in body.inputs), (*states, *rows), strict=True))
        results = executor.run(body, arguments, scope)
        states, row = results[: len(states)], results[len(states) :]
        outputs.append(row)
    places = node.integers("scan_output_axes", (0,) * len(outputs[0]))
    return [*states, *_stacked(executor, node, outputs, places)]


def _scanned(executor: Executor, value: Value, axis: int, node: GraphNode) -> list[Value]:
    if isinstance(value, Constant):
        return [Constant(part) for part in np.moveaxis(value.array, axis, 0)]
    if not isinstance(value, Series) or axis_of(axis, len(value.shape)) != value.axis:
        raise RefusalError("a scan that is not along time")
    return list(value.nodes)


def _stacked(executor: Executor, node: GraphNode, rows: Sequence[Sequence[Value]], axes: Sequence[int]) -> list[Value]:
    results: list[Value] = []
    for column, axis in zip(zip(*rows, strict=True), axes, strict=True):
        if any(isinstance(value, Refused) for value in column):
            results.append(Refused())
        elif all(isinstance(value, Constant) for value in column):
            arrays = [value.array for value in column if isinstance(value, Constant)]
            results.append(Constant(np.stack(arrays, axis)))
        else:
            results.append(_stack(executor, column, node, axis))
    return results


def _loop(executor: Executor, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
    body = node.graph("body")
    if inputs[0] is None:
        raise RefusalError("a loop without a number of iterations")
    count = _integers(inputs[0], "number of iterations")[0]
    if not 1 <= count <= MAX_STEPS:
        raise RefusalError(f"expected 1 to {MAX_STEPS} iterations, found {count}")
    condition = inputs[1] if len(inputs) > 1 else None
    states = [value for value in inputs[2:] if value is not None]
    rows: list[list[Value]] = []
    if len(body.inputs) != len(states) + 2:
        raise ValueError("the inputs of the loop do not fit its body")
    going: Value = condition if condition is not None else Constant(np.asarray(True))
    for index in range(count):
        if not bool(_known(going, "loop condition").ravel()[0]):
            raise RefusalError("a loop that ends early")
        arguments = (Constant(np.asarray(index, dtype=np.int64)), going, *states)
        results = executor.run(body, dict(zip((i.name for i in body.inputs), arguments, strict=True)), scope)
        going, states, row = results[0], results[1 : 1 + len(states)], results[1 + len(states) :]
        if isinstance(going, Refused):
            return [Refused()] * len(node.outputs)
        rows.append(row)
    return [*states, *_stacked(executor, node, rows, (0,) * len(rows[0]))]


def _if(executor: Executor, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
    chosen = "then_branch" if bool(_known(inputs[0], "condition").ravel()[0]) else "else_branch"
    return executor.run(node.graph(chosen), {}, scope)


Handler = Callable[[Executor, GraphNode, Inputs], Sequence[Value]]

_WITH_BODY: dict[str, Callable[[Executor, GraphNode, Inputs, Scope], Sequence[Value]]] = {
    "Scan": _scan,
    "Loop": _loop,
    "If": _if,
}
_RANDOM = {"Bernoulli", "RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Multinomial"}
_BROADCAST = set(
    "Add Sub Mul Div Mod Pow Greater GreaterOrEqual Less LessOrEqual Equal And Or Xor Where Min Max Sum".split()
)
_FOLDABLE = _BROADCAST | set(
    "Not Neg Abs Sqrt Exp Log Reciprocal Sigmoid Tanh Relu Sign Floor Ceil Round Erf Softplus Clip Cast CastLike "
    "Reshape Squeeze Unsqueeze Flatten Gather Slice Concat Split Shape Size Transpose ReduceSum ReduceProd ReduceMean "
    "ReduceMax ReduceMin Identity ScatterND ScatterElements Trilu CumSum Gemm MatMul Conv BatchNormalization "
    "AveragePool MaxPool GlobalAveragePool HardSigmoid Dropout".split()
)
_ON_LISTS = {
    "SequenceEmpty",
    "SequenceConstruct",
    "SequenceInsert",
    "SequenceAt",
    "SequenceLength",
    "SplitToSequence",
    "ConcatFromSequence",
    "snn::LIFStep",
    "snn::Heaviside",
}
_HANDLERS: dict[str, Handler] = {
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
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "AveragePool": _pool("avgpool"),
    "MaxPool": _pool("maxpool"),
    "GlobalAveragePool": _global_pool,
    "BatchNormalization": _batch_norm,
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _expand,
    "Concat": _concat,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("max"),
    "SequenceEmpty": _sequence_empty,
    "SequenceConstruct": _sequence_construct,
    "SequenceInsert": _sequence_insert,
    "SequenceAt": _sequence_at,
    "SequenceLength": _sequence_length,
    "SplitToSequence": _split_to_sequence,
    "ConcatFromSequence": _concat_from_sequence,
    "snn::LIFStep": _lif_step,
    "snn::Heaviside": _heaviside,
    **{op: _other for op in "Pow Sqrt Exp Log Reciprocal Sigmoid Tanh Erf Softplus Mod LeakyRelu Elu Selu Gelu".split()},
}
