"""Real exports against the outputs, gradients and updates of the frameworks that wrote them."""

import os
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

SHARED = Path(os.environ.get("H2LEARN_SHARED", Path(__file__).parents[3] / "shared")) / "models" / "onnx"
MLP = ("mlp_plain_step_compare_T4_dynamo", "mlp_plain_step_compare_T4_legacy")
CONV = (
    "conv_plain_layer_compare_T4_dynamo",
    "conv_plain_layer_compare_T4_legacy",
    "conv_snntorch_rect_zero_T4_legacy",
    "conv_spikingjelly_multistep_T4_dynamo",
    "conv_spikingjelly_multistep_T4_legacy",
)

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real models is absent")


def reference(stem):
    with np.load(SHARED / f"{stem}.npz") as archive:
        return {name: archive[name] for name in archive.files}


def run(model, x, batch=None):
    result = h2learn.compile(model, batch=batch).run({next(iter(model.inputs)): x})
    return next(iter(result.outputs.values()))


@pytest.mark.parametrize(
    ("stem", "options"),
    [
        ("mlp_scan_T4_dynamo", {}),
        ("mlp_scripted_loop_Tdyn_legacy", {"time_steps": 4}),
        ("mlp_customdomain_snn_LIFStep_T4_dynamo", {}),
    ],
)
def test_outputs_equal_the_stored_ones(stem, options):
    stored = reference(f"{stem}_io")
    x = next(value for name, value in stored.items() if name.startswith("in_"))
    model = h2learn.load_model(SHARED / f"{stem}.onnx", **options)
    found = run(model, x, batch=x.shape[1])
    np.testing.assert_array_equal(found, stored["out_0"])
    assert found.any() and not found.all()


@pytest.mark.parametrize(
    "stem",
    [
        "mlp_snntorch_synaptic_cuba_T4_dynamo",
        "mlp_norse_lifcell_licell_T4_legacy",
        "conv_snntorch_tutorial_bn_maxpool_inithidden_learnbeta_T4_legacy",
    ],
)
def test_neurons_of_every_kind_give_the_stored_outputs(stem):
    stored = reference(f"{stem}_io")
    model = h2learn.load_model(SHARED / f"{stem}.onnx")
    x = next(value for name, value in stored.items() if name.startswith("in_"))
    (source,), (output,) = model.inputs, model.outputs
    program = h2learn.compile(model)
    np.testing.assert_allclose(program.run({source: x}).outputs[output], stored["out_0"], rtol=1e-5, atol=1e-6)
    louder = 4 * x
    (expected,) = ReferenceEvaluator(str(SHARED / f"{stem}.onnx")).run(None, {source: louder})
    assert np.ptp(expected) > 0 or stem.startswith("conv"), "only the last layer of the tutorial network is silent"
    np.testing.assert_allclose(program.run({source: louder}).outputs[output], expected, rtol=1e-5, atol=1e-5)


def test_several_spikes_per_step_give_the_stored_and_louder_outputs():
    stem = "mlp_sinabs_lif_iaf_T4_dynamo"
    stored, model = reference(f"{stem}_io"), h2learn.load_model(SHARED / f"{stem}.onnx")
    assert all("any number of spikes per step" in note for note in model.notes if "exact" in note)
    program = h2learn.compile(model)
    for factor in (1, 8):
        x = factor * stored["in_input"]
        (expected,) = ReferenceEvaluator(str(SHARED / f"{stem}.onnx")).run(None, {"input": x})
        found = program.run({"input": x}).outputs["output"]
        np.testing.assert_array_equal(found, stored["out_0"] if factor == 1 else expected)
    assert expected.max() > 1


def test_a_reset_of_one_step_later_gives_the_stored_outputs():
    stored = reference("mlp_snntorch_subtract_T4_B2_reference")
    model = h2learn.load_model(SHARED / "mlp_snntorch_atan_subtract_T4_dynamo.onnx")
    np.testing.assert_array_equal(run(model, stored["input"]), stored["output"])


def test_batch_normalization():
    stored = reference("conv_spikingjelly_tdbn_stride2_T4_dynamo_io")
    model = h2learn.load_model(SHARED / "conv_spikingjelly_tdbn_stride2_T4_dynamo.onnx")
    np.testing.assert_allclose(run(model, stored["in_input"]), stored["out_0"], rtol=1e-5, atol=1e-6)
    assert {"n.1.bias", "n.1.running_mean"} <= set(model.parameters), "one tensor of the file has two roles"


def test_a_single_step_runs_over_time():
    stored = reference("mlp_cell_explicit_state_T1_dynamo_io")
    model = h2learn.load_model(SHARED / "mlp_cell_explicit_state_T1_dynamo.onnx", time_steps=4)
    x = reference("mlp_T4_B2_reference")["input"]
    w = {name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()}
    u1 = s1 = np.zeros((2, 512))
    u2 = s2 = np.zeros((2, 10))
    expected = []
    for t in range(4):
        u1 = 0.5 * u1 * (1 - s1) + x[t] @ w["fc1.weight"].T + w["fc1.bias"]
        s1 = u1 >= 1
        u2 = 0.5 * u2 * (1 - s2) + s1 @ w["fc2.weight"].T + w["fc2.bias"]
        s2 = u2 >= 1
        expected.append(s2)
    assert set(model.inputs) == {"x"} and set(model.outputs) == {"s2_out"}
    np.testing.assert_array_equal(run(model, x), np.stack(expected))
    assert stored["out_0"].shape == (2, 10)


@pytest.mark.parametrize("stem", MLP + CONV)
def test_a_training_step_equals_that_of_pytorch(stem):
    kind = stem.split("_")[0]
    expected = reference(f"{kind}_T4_B2_reference")
    model = h2learn.load_model(SHARED / f"{stem}.onnx")
    assert dict(model.inputs)["input"].shape == expected["input"].shape
    assert str(expected["loss_kind"]) in ("mse_rate", "ce_mean", "cross_entropy", "ce")
    step = h2learn.compile(
        model,
        train=h2learn.Train(
            loss="mse_rate" if kind == "mlp" else "cross_entropy",
            optimizer=h2learn.SGD(lr=0.1),
            surrogate=h2learn.Rectangular(half_width=0.5),
        ),
    )
    result = step.run({"input": expected["input"], "label": expected["label"].astype(np.int32)})
    np.testing.assert_allclose(result.outputs["output"], expected["output"], rtol=1e-5, atol=1e-6)
    assert result.loss == pytest.approx(float(expected["loss"]), rel=1e-5)
    theirs = [name.removeprefix("param.") for name in expected if name.startswith("param.")]
    assert len(theirs) == len(result.gradients)
    for ours, name in zip(result.gradients, theirs, strict=True):
        for found, known in (
            (result.gradients[ours], expected[f"grad.{name}"]),
            (result.parameters[ours], expected[f"sgd_lr0.1.{name}"]),
        ):
            same = found if found.shape == known.shape else found.T
            assert np.abs(same - known).max() <= 1e-5 * np.abs(known).max(), (ours, name)


def test_a_whole_training_step_gives_the_stored_loss_and_parameters():
    stored = reference("mlp_full_trainstep_fwd_bwd_sgd_T4_dynamo_io")
    model = h2learn.load_model(SHARED / "mlp_full_trainstep_fwd_bwd_sgd_T4_dynamo.onnx")
    names = [f"layers_{layer}_{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    result = h2learn.compile(model).run({name: stored[f"in_{name}"] for name in (*names, "input", "target_onehot")})
    assert result.loss == pytest.approx(float(stored["out_0"]), rel=1e-5)
    for index, name in enumerate(names):
        known = stored[f"out_{index + 1}"]
        assert np.abs(result.parameters[name] - known).max() <= 1e-5 * np.abs(known).max()


@pytest.mark.parametrize("stem", [MLP[1], CONV[3]])
def test_another_batch_gives_the_same_samples(stem):
    expected = reference(f"{stem.split('_')[0]}_T4_B2_reference")
    model = h2learn.load_model(SHARED / f"{stem}.onnx").with_batch(3)
    x = np.concatenate([expected["input"], expected["input"][:, :1]], axis=1)
    output = np.concatenate([expected["output"], expected["output"][:, :1]], axis=1)
    np.testing.assert_allclose(run(model, x), output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", sorted(SHARED.glob("*.onnx")), ids=lambda path: path.stem)
def test_every_file_is_imported_or_refused_with_a_node(path):
    options = {"time_steps": 4} if "Tdyn" in path.stem or "cell" in path.stem else {}
    try:
        model = h2learn.load_model(path, **options)
    except H2LearnError as error:
        assert error.excerpt.strip() or error.hint
        assert path.stem not in (*MLP, *CONV)
    else:
        assert model.module.verify() is None


def test_what_cannot_be_known_is_refused_by_name():
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(SHARED / "mlp_pythonop_fallthrough_T4_legacy.onnx")
    assert "/PythonOp (prim::PythonOp): this operator is not supported" in caught.value.excerpt
