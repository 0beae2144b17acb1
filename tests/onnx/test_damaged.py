"""Damaged files: each is imported or refused with a sentence, never a crash."""

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

MUTATIONS = 300


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
            helper.make_node("Gather", ["x", f"t{t}"], [f"x{t}"], f"take{t}", axis=0),
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
    nodes.append(helper.make_node("Concat", ["z0", "z1"], ["y"], "concat", axis=0))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
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


def test_single_field_mutations(tmp_path):
    outcomes = {"imported": 0, "refused": 0}
    for seed in range(MUTATIONS):
        model = small_model()
        changed = mutate(model, seed)
        try:
            load(model, tmp_path / "small.onnx")
            outcomes["imported"] += 1
        except H2LearnError as error:
            assert error.message and "\n" not in error.message, changed
            assert str(error.location).startswith(str(tmp_path)), changed
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"seed {seed}, {changed}: {type(error).__name__}: {error}")
    assert min(outcomes.values()) > MUTATIONS // 20


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
