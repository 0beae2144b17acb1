"""Types, attributes and verifiers of ``lut``: printing, parsing, refusals."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from xdsl.context import Context
from xdsl.dialects import test
from xdsl.dialects.builtin import Builtin, ModuleOp, TensorType, i32
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from h2learn.backends.reference.coding import Dropout
from h2learn.backends.reference.training import Loss
from h2learn.dialects import lut
from h2learn.dialects.lut import RUN_SCALARS, BiasGradOp, LiOp, RngOp, TimeSumOp, UnpoolOp, tensor
from h2learn.dialects.lut.normalisation import NormGradOp, NormOp, NormStatsOp, NormSumsOp

WINDOW = lut.ConvGeometry((3, 3), (2, 1), (1, 1))
HALF = lut.ConvGeometry((2, 2), (2, 2))
NEURON = lut.Neuron((0.5, 1e-7), (1.0,), (-0.25,), "hard", "gt", "triangular", 0.5, 2.0, False)
SPIKES = lut.SpikesType((4, 2, 6, 6, 8))
WEIGHTS = tensor((9, 8, 2))
LABELS = TensorType(i32, [2])
CURRENT = tensor((4, 2, 3, 6, 2))
ROW = tensor((2,))
MASK, SPIKES_OUT = (kind((4, 2, 3, 6, 2)) for kind in (lut.MaskType, lut.SpikesType))
INSIDE, CURVED = lut.InsideType((4, 2, 3, 6, 2), "f32"), replace(NEURON, surrogate="atan")
GRADS = lut.GradsType((4, 2, 3, 6, 2), "f16")


def value(type_):
    return test.TestOp(result_types=[type_]).results[0]


def context():
    result = Context()
    for dialect in (Builtin, test.Test, lut.Lut):
        result.load_dialect(dialect)
    return result


def one_of_each():
    """Return a module in which every op of the dialect occurs, with and without its optional parts."""
    ops = []

    def given(type_):
        ops.append(test.TestOp(result_types=[type_]))
        return ops[-1].results[0]

    def add(op):
        ops.append(op)
        return op

    s, w, bias, scalars = given(SPIKES), given(WEIGHTS), given(tensor((2,))), given(RUN_SCALARS)
    store, mask = given(lut.StoreType((2, 6, 6, 8), "f16")), given(lut.MaskType((4, 2, 6, 6, 8)))
    conv = add(lut.FeConvOp(s, w, WINDOW, 4, 8))
    add(lut.FeConvOp(s, w, WINDOW, 4, 8, onto=conv.current))
    add(lut.FeConvOp(s, w, WINDOW, 4, 8, onto=given(lut.SpikesType(CURRENT.get_shape()))))
    add(lut.FeConvOp(store, w, WINDOW, 4, 8, planes=lut.Planes(4, 2)))
    add(lut.FeConvOp(store, w, WINDOW, 2, 8, planes=lut.Planes(5, -1, True)))
    static = add(lut.BeConvOp(store, add(lut.CastOp(w, "f16")).w, WINDOW, 8))
    add(lut.BeConvOp(store, w, WINDOW, 8, onto=static.current))
    total = add(lut.AddOp(conv.current, static.current, conv.current.type))
    add(lut.AddOp(add(lut.ConvertOp(total.result, lut.StoreType(CURRENT.get_shape(), "f16"))).result, bias, CURRENT))
    add(lut.ConcatOp([s, s], lut.SpikesType((*SPIKES.shape[:-1], 16))))
    add(lut.SliceOp(conv.current, 1, 1))
    wide = add(lut.EmbedOp(w, (3, 3), (2, 1), 2)).result
    add(lut.EmbedOp(add(lut.CastOp(w, "f16")).w, (3, 3), (1, 2), 1))
    add(lut.ExtractOp(wide, (3, 3), (2, 1), 2))
    lif = add(lut.LifOp(conv.current, bias, NEURON, 4, "f16"))
    add(lut.LifOp(static.current, None, NEURON, 4, "f16"))
    near = add(lut.LifOp(conv.current, bias, NEURON, 4, "f16", inside=True))
    li = add(LiOp(conv.current, bias, lut.Neuron((1e-5,), drive="synapse", gain=(2.0,), beta=(0.5, 0.25)), 4, "f16"))
    maxima = add(lut.PoolOp(lif.s, "max", lut.ConvGeometry((3, 6)), "f16"))
    add(lut.PoolOp(lif.s, "avg", HALF, "f16"))
    add(lut.PoolOp(lif.s, "sum", WINDOW, "f16"))
    add(lut.PoolOp(conv.current, "max", HALF, "f16"))
    add(lut.DropoutOp(store, scalars, Dropout(0.25, 1), store.type))
    add(lut.DropoutOp(lif.u, scalars, Dropout(0.5, 2, True), CURRENT))
    add(RngOp(given(tensor((2, 6, 6, 8))), scalars, 1, 4))
    logits = add(lut.ReadoutOp(maxima.y, "rate")).logits
    add(lut.SpreadOp(given(tensor((2, 1, 1, 4))), given(lut.StoreType((4, 2, 1, 1, 4), "f16"))))
    loss = add(lut.LossOp(logits, given(LABELS), scalars, Loss("mse"), 0.25))
    gs = add(
        UnpoolOp(given(tensor((4, 2, 1, 1, 2))), maxima.winners, "max", lut.ConvGeometry((3, 6)), CURRENT.get_shape())
    )
    grad = add(lut.GradOp(gs.result, lif.u, lif.s, NEURON, "all", 4, "f16"))
    soft = lut.Neuron((0.5,), (1.0,), (0.0,), "soft", "gt", "rectangular", 0.5, 2.0, False)
    add(lut.GradOp(gs.result, lif.m, lif.s, soft, "all", 4, "f16"))
    add(lut.GradOp(gs.result, near.u, near.s, NEURON, "all", 4, "f16"))
    add(lut.GradOp(loss.dlogits, None, None, lut.Neuron((0.5,)), "last", 4, "f16"))
    add(lut.BeGradOp(grad.gu, w, mask, WINDOW, 2, "dual", (4, 2, 6, 6, 8)))
    through = add(lut.BeGradOp(grad.gu, w, None, WINDOW, 2, "in", (4, 2, 6, 6, 8))).gs
    add(lut.BeGradOp(grad.gu, w, None, WINDOW, 2, "in", (4, 2, 6, 6, 8), onto=through))
    add(lut.BeGradOp(grad.gu, w, mask, WINDOW, 2, "dual", (4, 2, 6, 6, 8), onto=through))
    slots = add(lut.ConvertOp(through, lut.GradsType((4, 2, 6, 6, 8), "f16")))
    add(lut.BeGradOp(grad.gu, w, mask, WINDOW, 2, "dual", (4, 2, 6, 6, 8), onto=slots.result))
    add(UnpoolOp(grad.gu, None, "avg", lut.ConvGeometry((1, 1)), CURRENT.get_shape()))
    total = add(TimeSumOp(grad.gu))
    add(lut.DelayOp(lif.s, 1))
    add(lut.DelayOp(gs.result, -2))
    gw = add(lut.WuOp(s, grad.gu, WINDOW, 4, (2, 1, 3, 3))).gw
    add(lut.BeWgtOp(store, total.result, WINDOW, (1, 1, 3, 3)))
    add(BiasGradOp(grad.gu, (1, 2, 3, 4)))
    row = given(tensor((2,)))
    current = given(CURRENT)
    settings = {"eps": 1e-5, "momentum": 0.1, "repeats": 3, "reduce_block": (2, 1, 3, 6)}
    stats = add(NormStatsOp(current, row, (row, row), scalars, **settings))
    add(NormOp(current, None, (stats.batch_mean, stats.inverse), row, row))
    sums = add(NormSumsOp(grad.gu, current, row, (stats.batch_mean, stats.inverse), scalars, (4, 2, 3, 6)))
    add(NormGradOp(sums, row))
    decay = add(lut.NeuronRowOp(given(tensor((1,))), "sigmoid", 2)).result
    learned = (decay, add(lut.NeuronRowOp(row, "plain", 2)).result)
    plain = lut.Neuron((0.5,), (1.0,), (0.0,), "hard", "gt", "rectangular", 0.5, 2.0, False)
    for rows in (learned, (learned[0], None), (None, learned[1])):
        spikes = add(lut.LifOp(conv.current, bias, plain, 4, "f16", learned=rows))
        add(lut.LifConstantsOp((grad.gu, grad.gu), spikes.u, spikes.s, plain, (4, 2, 3, 6), rows))
    add(lut.NeuronRowGradOp(row, given(tensor((1,))), "sigmoid"))
    add(lut.OptOp(w, gw, [], scalars, lut.Update()))
    add(lut.OptOp(w, gw, [w], scalars, lut.Update("nesterov", momentum=0.9)))
    add(lut.OptOp(w, gw, [], scalars, lut.Update(grad_scale=0.5), "f16"))
    add(lut.OptOp(w, gw, [w, w], scalars, lut.Update("adamw", beta1=0.9, beta2=0.999, eps=1e-8), "f16"))
    assert li.neuron.alpha == (1e-5,)
    return ModuleOp(ops)


def test_every_op_prints_and_parses():
    module = one_of_each()
    module.verify()
    assert {op.name for op in module.ops} - {"test.op"} == {op.name for op in lut.OPERATIONS}
    text = str(module)
    parsed = Parser(context(), text).parse_module()
    parsed.verify()
    assert parsed.is_structurally_equivalent(module)
    assert str(parsed) == text
    assert {op.engine for op in parsed.ops if isinstance(op, lut.LutOp)} == {"FE", "BE", "WUE", "VEC", "DMA"}


def test_attributes_are_plain_python():
    op = lut.WuOp(value(SPIKES), value(GRADS), WINDOW, 4, (2, 1, 3, 3))
    assert (op.geometry, op.fan_in, op.reduce_block) == (WINDOW, 4, (2, 1, 3, 3))
    assert (op.geometry.taps, op.geometry.extent(6, 6)) == (9, (3, 6))
    assert (SPIKES.shape, SPIKES.dtype, GRADS.dtype) == ((4, 2, 6, 6, 8), "bits", "f16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!lut.spikes<4x0>", "expected positive dimensions, found 4x0"),
        ("!lut.store<4x8, f64>", "expected a storage type of f32, f16, found 'f64'"),
        ("!lut.grads<4x8>", "Expected 'x'"),
    ],
)
def test_types_that_are_refused(text, message):
    with pytest.raises((ParseError, VerifyException), match=re.escape(message)):
        Parser(context(), text).parse_type()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lut.GeometryAttr(lut.ConvGeometry((0, 3))), "expected a positive kernel and stride"),
        (lambda: lut.NeuronAttr(lut.Neuron((0.5,), compare="gt", reset="firm")), "expected a reset of hard, soft"),
        (lambda: lut.NeuronAttr(lut.Neuron((float("nan"),))), "expected finite neuron constants"),
        (lambda: lut.NeuronAttr(lut.Neuron((0.5,), compare="gt", most=0)), "counted spikes need the comparison ge"),
        (lambda: lut.NeuronAttr(lut.Neuron((0.5,), compare="ge", periodic=True)), "only where spikes are counted"),
        (lambda: lut.NeuronAttr(lut.Neuron((0.5,), lowest=0.0)), "cannot have a lowest potential"),
        (lambda: lut.NeuronAttr(lut.Neuron((0.5,), reset="hard")), "never fires cannot have the reset 'hard'"),
        (lambda: lut.NeuronAttr(lut.Neuron(())), "expected at least one value of every"),
    ],
)
def test_attributes_that_are_refused(make, message):
    with pytest.raises(VerifyException, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lut.FeConvOp(value(SPIKES), value(tensor((4, 8, 2))), WINDOW, 4, 8), "kernel positions"),
        (lambda: lut.FeConvOp(value(SPIKES), value(tensor((9, 7, 2))), WINDOW, 4, 8), "input channels"),
        (lambda: lut.FeConvOp(value(SPIKES), value(tensor((8, 2))), WINDOW, 4, 8), "expected weights [kh*kw, C, K]"),
        (lambda: lut.FeConvOp(value(SPIKES), value(WEIGHTS), WINDOW, 9, 8), "fan_in between 1 and 8, found 9"),
        (lambda: lut.FeConvOp(value(SPIKES), value(WEIGHTS), WINDOW, 4, 0), "reduce_block to be positive"),
        (lambda: lut.FeConvOp(value(CURRENT), value(WEIGHTS), WINDOW, 4, 8), "expected spikes, found tensor"),
        (
            lambda: lut.FeConvOp(value(SPIKES), value(WEIGHTS), WINDOW, 4, 8, planes=lut.Planes(2)),
            "expected stored numbers as bit-planes, found !lut.spikes",
        ),
        (lambda: lut.PlanesAttr(lut.Planes(25)), "expected 1 to 24 planes"),
        (lambda: lut.PlanesAttr(lut.Planes(2, 32)), "frac from -32 to 31"),
        (
            lambda: lut.BeConvOp(
                value(lut.StoreType((2, 1, 1, 8), "f32")), value(WEIGHTS), lut.ConvGeometry((3, 3)), 8
            ),
            "the window does not fit its input",
        ),
        (lambda: lut.LifOp(value(CURRENT), value(tensor((3,))), NEURON, 4, "f32"), "shape of the bias"),
        (lambda: lut.LifOp(value(CURRENT), None, NEURON, 5, "f32"), "time_steps to be 4, found 5"),
        (lambda: lut.LifOp(value(CURRENT), None, lut.Neuron((0.5,)), 4, "f32"), "the neuron to fire"),
        (
            lambda: lut.LifOp(value(CURRENT), None, lut.Neuron((0.5,) * 3, compare="ge"), 4, "f32"),
            "expected 1 or 2 values of alpha, found 3",
        ),
        (lambda: lut.PoolOp(value(GRADS), "avg", HALF, "f32"), "expected spikes or an fp32 tensor to pool"),
        (lambda: lut.PoolOp(value(SPIKES), "min", HALF, "f32"), "expected a pooling of avg, max, sum, found 'min'"),
        (
            lambda: lut.PoolOp(value(SPIKES), "avg", lut.ConvGeometry((3, 3), (1, 1), (2, 1)), "f32"),
            "expected a padding of at most half the window",
        ),
        (
            lambda: UnpoolOp(value(CURRENT), None, "max", HALF, (4, 2, 6, 12, 2)),
            "expected winners for max pooling, and only there",
        ),
        (lambda: lut.ReadoutOp(value(SPIKES), "membrane_mean"), "expected lut.store for the readout membrane_mean"),
        (
            lambda: lut.LossOp(value(tensor((2, 1, 1, 4))), value(LABELS), value(RUN_SCALARS), Loss("hinge"), 1.0),
            "expected a loss of cross_entropy, mse, found 'hinge'",
        ),
        (lambda: lut.GradOp(value(CURRENT), None, None, NEURON, "all", 4, "f32"), "expected membrane potentials"),
        (
            lambda: lut.GradOp(value(CURRENT), value(MASK), value(SPIKES_OUT), NEURON, "all", 4, "f32"),
            "of which this gradient needs more than the mask",
        ),
        (
            lambda: lut.GradOp(value(CURRENT), value(INSIDE), value(SPIKES_OUT), CURVED, "all", 4, "f32"),
            "which this gradient needs outside the window too",
        ),
        (lambda: lut.GradOp(value(CURRENT), None, None, lut.Neuron((1.0,)), "last", 4, "f32"), "incoming gradient"),
        (
            lambda: lut.BeGradOp(value(GRADS), value(WEIGHTS), None, WINDOW, 2, "dual", (4, 2, 6, 6, 8)),
            "mode dual needs a mask",
        ),
        (
            lambda: lut.BeGradOp(value(GRADS), value(WEIGHTS), None, WINDOW, 2, "in", (4, 2, 9, 6, 8)),
            "expected the shape of the gradient",
        ),
        (
            lambda: lut.BeGradOp(
                value(GRADS), value(WEIGHTS), None, WINDOW, 2, "in", (4, 2, 6, 6, 8), onto=value(CURRENT)
            ),
            "shape of the gradient to go on from",
        ),
        (
            lambda: lut.FeConvOp(value(SPIKES), value(WEIGHTS), WINDOW, 4, 8, onto=value(tensor((2, 3, 6, 2)))),
            "shape of the current to go on from",
        ),
        (
            lambda: lut.FeConvOp(value(SPIKES), value(WEIGHTS), WINDOW, 4, 8, onto=value(GRADS)),
            "expected a current to go on from",
        ),
        (lambda: lut.AddOp(value(CURRENT), value(tensor((4,))), CURRENT), "shape [4, 2, 3, 6, 2] to add, found [4]"),
        (
            lambda: lut.AddOp(value(SPIKES), value(SPIKES), SPIKES),
            "expected an fp32 tensor, stored values or gradients",
        ),
        (lambda: lut.EmbedOp(value(WEIGHTS), (3, 2), (1, 1), 2), "kernel positions of the weights to be 6, found 9"),
        (lambda: lut.EmbedOp(value(WEIGHTS), (3, 3), (1, 1), 4), "expected output channels of 4 groups"),
        (
            lambda: lut.ConcatOp([value(CURRENT)] * 2, tensor((4, 2, 3, 6, 3))),
            "channels of the parts to be 3, found 4",
        ),
        (
            lambda: lut.ConcatOp([value(lut.SpikesType((2, 1, 1, 4)))] * 2, lut.SpikesType((2, 1, 1, 8))),
            "multiple of 8 channels",
        ),
        (lambda: lut.SliceOp(value(CURRENT), 1, 2), "expected channels below 2, found 1 and 2 more"),
        (lambda: lut.ConvertOp(value(CURRENT), lut.StoreType((4, 2), "f16")), "shape of the result"),
        (
            lambda: NormSumsOp(
                value(GRADS), value(CURRENT), None, (value(ROW), value(ROW)), value(RUN_SCALARS), (3, 1, 1, 1)
            ),
            "expected whole blocks of [4, 2, 3, 6] positions",
        ),
        (
            lambda: NormOp(value(CURRENT), None, (value(ROW), value(ROW)), value(ROW), value(tensor((3,)))),
            "expected one number for each of 2 channels",
        ),
        (lambda: lut.WuOp(value(SPIKES), value(GRADS), WINDOW, 4, (0, 1, 1, 1)), "reduce_block to be positive"),
        (
            lambda: lut.OptOp(value(WEIGHTS), value(WEIGHTS), [], value(RUN_SCALARS), lut.Update("sgd", momentum=0.9)),
            "expected 1 buffers",
        ),
        (
            lambda: lut.OptOp(value(WEIGHTS), value(CURRENT), [], value(RUN_SCALARS), lut.Update()),
            "shape of the gradient",
        ),
    ],
)
def test_ops_that_are_refused(make, message):
    with pytest.raises(VerifyException, match=re.escape(message)):
        make().verify()
