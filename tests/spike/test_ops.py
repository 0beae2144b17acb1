"""The spike and sgrad ops: text round trip, and what their verifiers refuse."""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.dialects import builtin, func, test
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.neuron import Neuron
from h2learn.backends.reference.training import Loss
from h2learn.compiler.autodiff import SGD, Train, differentiate
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.sgrad.ops import Sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import SCALARS, real, spikes
from h2learn.dialects.spike.ops import Spike

HERE = builtin.FileLineColLoc(builtin.StringAttr("a.snn"), builtin.IntAttr(1), builtin.IntAttr(1))

EVERYTHING = """
network everything
input x: 1 x 6 x 6
time steps: 2
encode bernoulli
conv c1: 2 channels, kernel 2 x 2
pool: avg 2 x 2
li: decay 0.5
conv c2: 2 channels, kernel 1 x 1
lif a
pool: max 2 x 2
flatten
linear f1: 3 features
lif b
readout rate
"""


def value(kind):
    return test.TestOp(result_types=[kind]).results[0]


def context():
    result = Context()
    for dialect in (builtin.Builtin, func.Func, test.Test, Spike, Sgrad):
        result.load_dialect(dialect)
    return result


def test_training_graph_round_trips_as_text():
    step = differentiate(parse_snn(EVERYTHING).with_batch(2).module, Train(optimizer=SGD(0.1, 0.9)))
    again = Parser(context(), str(step)).parse_module()
    again.verify()
    assert str(again) == str(step)
    kinds = {op.name for op in step.walk()}
    assert {"sgrad.conv_input", "sgrad.pool", "sgrad.unflatten", "spike.sgd", "spike.encode"} <= kinds


SPIKES, MAPS = spikes((2, 1, 6, 6, 3)), real((2, 1, 6, 6, 3))
REFUSED = [
    (
        "weight of type tensor<2x2x3x4xf32>, found tensor<2x2x5x4xf32>",
        lambda: spike.ConvOp(value(SPIKES), value(real((2, 2, 5, 4))), location=HERE),
    ),
    (
        "bias of type tensor<4xf32>",
        lambda: spike.ConvOp(value(SPIKES), value(real((2, 2, 3, 4))), value(real((3,))), location=HERE),
    ),
    (
        "at least 7 x 1",
        lambda: spike.ConvOp(value(SPIKES), value(real((7, 1, 3, 4))), location=HERE),
    ),
    (
        "2 integers >= 1 as stride, found \\[1, 0\\]",
        lambda: spike.ConvOp(value(SPIKES), value(real((1, 1, 3, 4))), stride=(1, 0), location=HERE),
    ),
    (
        "weight of type tensor<3x4xf32>",
        lambda: spike.LinearOp(value(spikes((2, 1, 3))), value(real((5, 4))), location=HERE),
    ),
    ("x of rank 4 or 5", lambda: spike.FlattenOp(value(spikes((2, 1, 3))), location=HERE)),
    ("x of f32, found", lambda: spike.LifOp(value(SPIKES), Neuron(), location=HERE)),
    ("1 or 3 numbers as theta, found 2", lambda: spike.LifOp(value(MAPS), Neuron(theta=(1.0, 2.0)), location=HERE)),
    ("finite numbers as alpha", lambda: spike.LifOp(value(MAPS), Neuron(alpha=(float("nan"),)), location=HERE)),
    ("reset to be one of hard", lambda: spike.LifOp(value(MAPS), Neuron(reset="late"), location=HERE)),
    ("positive width", lambda: spike.LifOp(value(MAPS), Neuron(width=0.0), location=HERE)),
    ("1 or 3 numbers as alpha, found 0", lambda: spike.LiOp(value(MAPS), Neuron(alpha=()), location=HERE)),
    ("at most 16777216 spikes", lambda: spike.LifOp(value(MAPS), Neuron(max_spikes=1 << 25), location=HERE)),
    ("spikes at u >= thr", lambda: spike.LifOp(value(MAPS), Neuron(max_spikes=0, compare="gt"), location=HERE)),
    ("a threshold above 0", lambda: spike.LifOp(value(MAPS), Neuron(max_spikes=0, theta=(0.0,)), location=HERE)),
    ("a detached reset", lambda: spike.LifOp(value(MAPS), Neuron(max_spikes=3), location=HERE)),
    ("periodic surrogate", lambda: spike.LifOp(value(MAPS), Neuron(periodic=True), location=HERE)),
    ("finite number as v_min", lambda: spike.LifOp(value(MAPS), Neuron(v_min=float("inf")), location=HERE)),
    (
        "one spike per step, no lower bound and no hard-delayed reset",
        lambda: spike.LifOp(value(MAPS), Neuron(v_min=0.0), value(real((3,))), location=HERE),
    ),
    ("x of f32", lambda: spike.ReadoutOp(value(spikes((2, 1, 3))), "membrane_last", location=HERE)),
    ("1 scalars for bernoulli", lambda: spike.EncodeOp(value(real((1, 3))), "bernoulli", 2, location=HERE)),
    ("integer >= 1 as time_steps", lambda: spike.EncodeOp(value(real((1, 3))), "direct", 0, location=HERE)),
    (
        "label of type tensor<4xi32>",
        lambda: spike.LossOp(
            value(real((4, 3))),
            value(builtin.TensorType(builtin.i64, [4])),
            value(SCALARS),
            Loss(),
            location=HERE,
        ),
    ),
    (
        "1 velocity with momentum 0.5",
        lambda: spike.SgdOp(value(real((3,))), value(real((3,))), None, value(SCALARS), momentum=0.5, location=HERE),
    ),
    (
        "gradient of type tensor<2x1x3x3x3xf32>",
        lambda: sgrad.PoolOp(value(MAPS), value(MAPS), "max", (2, 2), (2, 2), location=HERE),
    ),
    (
        "s of type",
        lambda: sgrad.LifOp(value(MAPS), value(MAPS), value(MAPS), Neuron(), location=HERE),
    ),
    (
        "s of type tensor<2x1x6x6x3xf32>, found",
        lambda: sgrad.LifOp(value(MAPS), value(MAPS), value(SPIKES), Neuron(reset="soft", max_spikes=4), location=HERE),
    ),
    (
        "\\(5, 5\\) rows and columns, found \\(6, 6\\)",
        lambda: sgrad.ConvWeightOp(
            value(SPIKES), value(MAPS), stride=(1, 1), padding=(0, 0), kernel=(2, 2), location=HERE
        ),
    ),
    ("8 features, found 6", lambda: sgrad.UnflattenOp(value(real((2, 1, 6))), (2, 2, 2), location=HERE)),
    ("rhs of type", lambda: sgrad.AddOp(value(real((2,))), value(real((3,))), location=HERE)),
]


@pytest.mark.parametrize(("message", "make"), REFUSED, ids=[m for m, _ in REFUSED])
def test_refused(message, make):
    with pytest.raises(VerifyException, match=message):
        make()


def test_a_wrong_result_type_in_text_is_refused():
    text = str(
        builtin.ModuleOp([a := test.TestOp(result_types=[SPIKES]), spike.FlattenOp(a.results[0], location=HERE)])
    )
    Parser(context(), text).parse_module().verify()
    wrong = Parser(context(), text.replace("x108xi1", "x107xi1")).parse_module()
    with pytest.raises(VerifyException, match="expected results"):
        wrong.verify()


def test_conv_sizes_round_down():
    op = spike.ConvOp(value(SPIKES), value(real((3, 2, 3, 5))), stride=(2, 3), padding=(1, 0), location=HERE)
    assert op.result.type == real((2, 1, 3, 2, 5))
    pool = spike.PoolOp(value(SPIKES), "avg", (4, 5), (4, 5), location=HERE)
    assert pool.result.type == real((2, 1, 1, 1, 3))
