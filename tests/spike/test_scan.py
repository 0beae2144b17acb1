"""``spike.scan`` and ``spike.delay``: their text, their meaning, and what the verifiers refuse."""

import numpy as np
import pytest
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.universe import new_context
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.interpreter import interpret, main_block
from h2learn.dialects.spike.scan import captures, reads

HERE = Location("net.snn", 1, 1)
T, N, C, K = 7, 2, 3, 5
NEURON = Neuron(alpha=(0.75,), theta=(0.6,), reset="soft")


def network(delay=(0,)):
    """Return a model whose outputs are the spikes of a recurrent layer, later by ``delay``."""
    builder = NetworkBuilder(N)
    x = builder.linear(builder.input("x", (C,), HERE, time_steps=T), "a", K, HERE)
    x = builder.recurrent(x, "r", lambda current: builder.lif(current, NEURON, HERE), HERE, bias=True)
    builder.output("s", builder.delay(x, delay, HERE))
    return builder.finish("net", HERE).module


def arguments(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (T, N, C))
    return [x, rng.normal(0, 0.8, (C, K)), rng.normal(0, 0.2, K), rng.normal(0, 0.7, (K, K)), rng.normal(0, 0.2, K)]


def step_by_step(x, a, b, v, c):
    u, s, result = np.zeros((N, K)), np.zeros((N, K)), []
    for current in x @ a + b:
        u = 0.75 * (u - 0.6 * s) + current + s @ v + c
        s = (u >= 0.6).astype(float)
        result.append(s > 0)
    return np.stack(result)


@pytest.mark.parametrize("delay", [(0,), (1,), (3,), (9,), (0, 1, 2, 3, 20)])
def test_feedback_and_delay(delay):
    given = arguments()
    expected = step_by_step(*given)
    assert 0.1 < expected.mean() < 0.9
    late = np.zeros_like(expected)
    for channel, steps in enumerate(np.broadcast_to(delay, K)):
        late[steps:, :, channel] = expected[: max(T - steps, 0), :, channel]
    np.testing.assert_array_equal(interpret(network(delay), given, np.float64)[0], late)


def test_print_and_parse():
    module = network((2,))
    parsed = Parser(new_context(), str(module)).parse_module()
    parsed.verify()
    assert str(parsed) == str(module)


def test_what_a_scan_reads():
    block = main_block(network())
    (scan,) = [op for op in block.ops if isinstance(op, spike.ScanOp)]
    assert captures(scan) == [block.args[3], block.args[4]]
    assert reads(scan) == [*scan.inputs, *captures(scan)]
    assert len(scan.outputs) == len(scan.fed_back) == 1


def edited(change):
    module = network()
    (scan,) = [op for op in main_block(module).ops if isinstance(op, spike.ScanOp)]
    change(scan.body.block)
    return module


def drop_end(block):
    block.erase_op(block.last_op)


def feed_potentials(block):
    neurons = next(op for op in block.ops if isinstance(op, spike.LifOp))
    block.last_op.operands = [neurons.u]


def drop_feedback(block):
    block.args[1].replace_all_uses_with(next(op for op in block.ops if isinstance(op, spike.LifOp)).s)
    block.erase_arg(block.args[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_end, "is not a terminator"),
        (feed_potentials, "expected results"),
        (drop_feedback, "expected 1 to 1 fed-back values, found 0"),
    ],
)
def test_scans_that_are_refused(change, message):
    with pytest.raises(VerifyException, match=message):
        edited(change).verify()


def test_delays_that_are_refused():
    x = network().body.block.first_op.body.block.args[0]
    for steps, message in (([-1], "integers >= 0 as steps"), ([1, 2], "expected 1 or 3 numbers as steps")):
        with pytest.raises(VerifyException, match=message):
            spike.DelayOp(x, steps, location=x.location)


def test_builders_refuse_maps_and_spikes():
    builder = NetworkBuilder(N)
    maps = builder.input("x", (2, 3, 3), HERE, time_steps=T)
    spikes = builder.input("s", (4,), HERE, time_steps=T, binary=True)
    static = builder.input("y", (4,), HERE)
    for x in (maps, builder.flatten(maps, HERE), spikes):
        with pytest.raises(H2LearnError, match="as input of recurrent r"):
            builder.recurrent(x, "r", lambda current: current, HERE)
    with pytest.raises(H2LearnError, match="expected a value over time to delay"):
        builder.delay(static, [1], HERE)
