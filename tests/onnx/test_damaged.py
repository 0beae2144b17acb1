"""Damaged files: each is imported or refused with a sentence, never a crash."""

import os
import random
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

MUTATIONS = int(os.environ.get("H2LEARN_MUTATIONS", "300"))
"""Per kind of file; the whole contract is 2,000."""


OF_THE_FILE = r"operator set|opset_import|ir_version|Field '\w+' of|non-empty name"
"""What a message names where the mutation is of no node."""


def small_model():
    """Two time steps of a convolution and a neuron, then a matrix product."""
    rng = np.random.default_rng(0)
    constants = {
        "conv.weight": rng.standard_normal((2, 1, 3, 3)).astype(np.float32),
        "conv.bias": np.zeros(2, np.float32),
        "fc.weight": rng.standard_normal((3, 8)).astype(np.float32),
        "half": np.float32(0.5),
        "one": np.float32(1.0),
        "axis": np.array([0], np.int64),
        "shape": np.array([2, 8], np.int64),
    }
    nodes = []
    for t in range(2):
        constants[f"t{t}"] = np.int64(t)
        nodes += [
            helper.make_node("Gather", ["image", f"t{t}"], [f"x{t}"], f"take{t}", axis=0),
            helper.make_node("Conv", [f"x{t}", "conv.weight", "conv.bias"], [f"i{t}"], f"conv{t}", pads=[0, 0, 0, 0]),
        ]
        u = f"i{t}"
        if t:
            nodes += [
                helper.make_node("Sub", ["one", "s0"], ["keep"], "keep"),
                helper.make_node("Mul", ["i0", "half"], ["leak"], "leak"),
                helper.make_node("Mul", ["leak", "keep"], ["rest"], "rest"),
                helper.make_node("Add", ["rest", "i1"], ["u1"], "add"),
            ]
            u = "u1"
        nodes += [
            helper.make_node("GreaterOrEqual", [u, "one"], [f"b{t}"], f"fire{t}"),
            helper.make_node("Cast", [f"b{t}"], [f"s{t}"], f"cast{t}", to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"s{t}", "shape"], [f"r{t}"], f"flat{t}"),
            helper.make_node("Gemm", [f"r{t}", "fc.weight"], [f"y{t}"], f"fc{t}", transB=1),
            helper.make_node("Unsqueeze", [f"y{t}", "axis"], [f"z{t}"], f"stack{t}"),
        ]
    nodes.append(helper.make_node("Concat", ["z0", "z1"], ["result"], "concat", axis=0))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 2, 1, 4, 4])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [2, 2, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def training_step():
    """One layer of neurons over one time step: forward, backward, update."""
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["x0"], "first"),
        helper.make_node("MatMul", ["x0", "weight"], ["i"], "product"),
        helper.make_node("Sub", ["i", "one"], ["d"], "over"),
        helper.make_node("GreaterOrEqual", ["d", "zero"], ["b"], "fire"),
        helper.make_node("Cast", ["b"], ["s"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["s", "axis"], ["z"], "stack"),
        helper.make_node("ReduceMean", ["z"], ["y"], "mean", axes=[0], keepdims=0),
        helper.make_node("Sub", ["y", "target"], ["e"], "error"),
        helper.make_node("Mul", ["e", "e"], ["q"], "square"),
        helper.make_node("ReduceMean", ["q"], ["loss"], "loss", keepdims=0),
        helper.make_node("Mul", ["e", "scale"], ["g"], "gradient"),
        helper.make_node("Abs", ["d"], ["a"], "distance"),
        helper.make_node("Less", ["a", "half"], ["m"], "window"),
        helper.make_node("Cast", ["m"], ["h"], "mask", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["g", "h"], ["gu"], "through"),
        helper.make_node("Transpose", ["x0"], ["xt"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["xt", "gu"], ["gw"], "outer"),
        helper.make_node("Mul", ["gw", "rate"], ["step"], "step"),
        helper.make_node("Sub", ["weight", "step"], ["changed"], "update"),
    ]
    constants = {"one": 1.0, "zero": 0.0, "half": 0.5, "rate": 0.1, "scale": 2 / (2 * 3)}
    shapes = {"weight": [5, 3], "image": [1, 2, 5], "target": [2, 3], "loss": [], "changed": [5, 3]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))
    tensors.append(numpy_helper.from_array(np.array([2, 5], np.int64), "flat"))
    places = [values[name] for name in ("weight", "image", "target")], [values["loss"], values["changed"]]
    graph = helper.make_graph(nodes, "step", *places, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fields(message):
    """Yield every (message, field, index) that holds a number, a text or bytes."""
    for field, value in message.ListFields():
        repeated = hasattr(value, "append") or hasattr(value, "add")
        for index, item in enumerate(value) if repeated else [(None, value)]:
            if field.type == field.TYPE_MESSAGE:
                yield from fields(item)
            else:
                yield message, field, index


def mutate(model, seed):
    """Change one field; return what was changed."""
    rng = random.Random(seed)
    message, field, index = rng.choice(list(fields(model)))
    old = getattr(message, field.name) if index is None else getattr(message, field.name)[index]
    if isinstance(old, bool | int):
        new = rng.choice([0, 1, -1, 2, 7, old + 1, -old, 2**31 - 1, 10**6])
    elif isinstance(old, float):
        new = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38, old * 2])
    elif isinstance(old, bytes):
        new = rng.choice([b"", old[:-1], old + b"\0", bytes(len(old)), b"\xff" * len(old)])
    else:
        new = rng.choice(["", "x", old + "_", "Add", "Loop", "Shape", "onnx", old[::-1]])
    try:
        if index is None:
            setattr(message, field.name, new)
        else:
            getattr(message, field.name)[index] = new
    except (ValueError, TypeError, OverflowError):
        return None
    return f"{field.full_name}: {old!r} -> {new!r}"


def load(model, path):
    path.write_bytes(model.SerializeToString())
    return h2learn.load_model(path)


def test_the_model_itself_is_imported(tmp_path):
    model = load(small_model(), tmp_path / "small.onnx")
    assert list(model.parameters) == ["conv.weight", "conv.bias", "fc.weight"]


def names_of(model):
    """Return what a message can call a place of the file: nodes, tensors, and the fields beside them."""
    graph = model.graph
    nodes = {node.name for node in graph.node} | {name for n in graph.node for name in (*n.output, *n.input)}
    return {name for name in (*nodes, *(i.name for i in (*graph.input, *graph.output, *graph.initializer))) if name}


@pytest.mark.parametrize("kind", ["network", "training step"])
def test_single_field_mutations(kind, tmp_path):
    base = small_model() if kind == "network" else training_step()
    count = MUTATIONS if kind == "network" else MUTATIONS // 10
    outcomes = {"imported": 0, "refused": 0}
    for seed in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(base)
        changed = mutate(model, seed)
        try:
            load(model, tmp_path / "small.onnx")
            outcomes["imported"] += 1
        except H2LearnError as error:
            assert error.message and "\n" not in error.message, changed
            assert str(error.location).startswith(str(tmp_path)), changed
            text = error.render()
            known = "|".join(map(re.escape, names_of(base) | names_of(model)))
            named = re.search(rf"(^|[^\w./])({known})($|\W)|{OF_THE_FILE}", text.replace(str(tmp_path), ""))
            assert named, f"{changed}: {text}"
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"seed {seed}, {changed}: {type(error).__name__}: {error}")
    assert min(outcomes.values()) > count // 20


def test_damaged_bytes(tmp_path):
    data = small_model().SerializeToString()
    path = tmp_path / "small.onnx"
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(H2LearnError):
            h2learn.load_model(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(H2LearnError, match="expected an ONNX model"):
        h2learn.load_model(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(H2LearnError, match="expected a readable file"):
        h2learn.load_model(tmp_path / "none.onnx")


def test_messages_name_the_node(tmp_path):
    model = small_model()
    next(n for n in model.graph.node if n.name == "leak").op_type = "Atan"
    del next(n for n in model.graph.node if n.name == "leak").input[1]
    with pytest.raises(H2LearnError) as caught:
        load(model, tmp_path / "small.onnx")
    assert "leak (Atan)" in caught.value.render()


def test_parameters_that_are_not_finite(tmp_path):
    model = small_model()
    bias = next(i for i in model.graph.initializer if i.name == "conv.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0], np.float32), "conv.bias"))
    with pytest.raises(H2LearnError) as caught:
        load(model, tmp_path / "small.onnx")
    assert "conv0 (Conv): its parameters hold values that are not finite" in caught.value.excerpt


def test_local_functions_are_inlined(tmp_path):
    model = small_model()
    model.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("Add", ["a", "b"], ["c"])]
    model.functions.append(
        helper.make_function("local", "Plus", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    )
    node = next(n for n in model.graph.node if n.name == "add")
    node.op_type, node.domain = "Plus", "local"
    assert load(model, tmp_path / "small.onnx").parameters
    assert onnx.load(tmp_path / "small.onnx").functions
