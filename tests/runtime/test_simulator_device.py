"""Named arrays in and out of device memory: order, storage, absent samples, scalars, refusals."""

import json

import numpy as np
import pytest

from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.runtime.device import Device
from h2learn.runtime.loader import load

BATCH, STEPS = 4, 3
TENSORS = {  # name: role, dtype, device shape, view, perm, section
    "image": ("input", "f16", [4, 2, 3, 5], [-1, 5, 2, 3], [0, 2, 3, 1], "bss"),
    "events": ("input", "bits", [3, 4, 1, 1, 11], [], [], "bss"),
    "label": ("label", "i32", [4], [], [], "bss"),
    "scalars": ("scalars", "scalars", [8], [], [], "bss"),
    "conv": ("parameter", "f32", [4, 5, 7], [7, 5, 2, 2], [2, 3, 1, 0], "data"),
    "logits": ("output", "f32", [4, 1, 1, 6], [4, 6], [], "bss"),
    "spikes": ("output", "bits", [3, 4, 1, 1, 11], [], [], "bss"),
    "loss": ("loss", "f32", [], [], [], "bss"),
}
BYTES = {"f16": 2, "f32": 4, "i32": 4}


def program(code="halt\n", names=tuple(TENSORS), plane=0, **note):
    lines = [".machine h2l-edge", f".note batch {BATCH}", f".note time_steps {STEPS}"]
    addresses = {"data": 0x1000, "bss": 0x4000}
    symbols = []
    for name in names:
        role, dtype, shape, view, perm, section = TENSORS[name]
        size = {"scalars": 32, "bits": 3 * 4 * 2}.get(dtype) or BYTES[dtype] * int(np.prod(shape))
        entry = {"name": name, "role": role, "symbol": name, "dtype": dtype, "shape": shape, "view": view, "perm": perm}
        if name == "conv":
            entry |= {"shadow": "conv16"} | ({"shadow_plane": plane} if plane else {})
            symbols.append(f'.symbol "conv16", bss, 0x7000, {size // 2}')
        lines.append(f".io {json.dumps(entry)}")
        symbols.append(f'.symbol "{name}", {section}, {addresses[section]:#x}, {size}')
        addresses[section] += (size + 63) // 64 * 64
    lines += [f".note {key} {json.dumps(value)}" for key, value in note.items()]
    lines += [".data 0x1000", ".zero 4096", ".bss 0x4000, 0x4000", *symbols, ".text", code]
    return load(assemble("\n".join(lines), "test.s"))


def device(*args, **kwargs):
    return Device(program(*args, **kwargs), execute="reference", sanitize={"bounds"})


def raw(dev, name, dtype):
    symbol = dev.program.symbols[name]
    start = symbol.address - dev.memories.dram_base
    return dev.memories.arrays["DRAM"][start : start + symbol.size].view(dtype)


def full_inputs(n=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(n, 5, 2, 3)),
        "events": rng.integers(0, 2, (STEPS, n, 1, 1, 11)),
        "label": rng.integers(0, 6, n),
    }


def test_images_go_channels_last_in_half_precision():
    dev, x = device(), full_inputs()["image"]
    assert dev.write("image", x) == BATCH
    expected = x.astype(np.float32).astype(np.float16).transpose(0, 2, 3, 1)
    assert (raw(dev, "image", np.float16) == expected.reshape(-1)).all()


def test_spikes_are_packed_along_channels():
    dev, s = device(), full_inputs()["events"]
    dev.write("events", s)
    packed = raw(dev, "events", np.uint8).reshape(STEPS, BATCH, 2)
    for channel in range(11):
        assert ((packed[:, :, channel // 8] >> channel % 8 & 1) == s[:, :, 0, 0, channel]).all()
    assert not (packed[:, :, 1] >> 3).any()


def test_parameters_come_back_in_the_users_order_and_fill_their_storage_copy():
    dev, w = device(), np.random.default_rng(1).normal(size=(7, 5, 2, 2)).astype(np.float32)
    dev.write("conv", w)
    assert (raw(dev, "conv", np.float32).reshape(2, 2, 5, 7) == w.transpose(2, 3, 1, 0)).all()
    assert (raw(dev, "conv16", np.float16) == raw(dev, "conv", np.float32).astype(np.float16)).all()
    assert list(dev.parameters) == ["conv"] and (dev.parameters["conv"] == w).all()
    with pytest.raises(KeyError):
        dev.parameters["logits"]


def test_a_storage_copy_is_written_in_its_planes():
    dev, w = device(plane=1), np.random.default_rng(1).normal(size=(7, 5, 2, 2)).astype(np.float32)
    dev.write("conv", w)
    assert (raw(dev, "conv", np.float32).reshape(2, 2, 5, 7) == w.transpose(2, 3, 1, 0)).all()
    planes = raw(dev, "conv16", np.float16).reshape(7, 2, 2, 5)
    assert (planes == w.astype(np.float16).transpose(0, 2, 3, 1)).all()
    assert (dev.parameters["conv"] == w).all()


def test_a_run_feeds_everything_and_reads_the_outputs():
    dev = device()
    raw(dev, "logits", np.float32)[:] = np.arange(24)
    raw(dev, "loss", np.float32)[:] = 2.5
    raw(dev, "spikes", np.uint8)[:] = 1
    result = dev.run(full_inputs())
    assert (result.outputs["logits"] == np.arange(24).reshape(4, 6)).all() and result.loss == 2.5
    spikes = result.outputs["spikes"]
    assert spikes.dtype == np.bool_ and spikes.shape == (3, 4, 1, 1, 11)
    assert spikes[..., [0, 8]].all() and spikes.sum() == 2 * 12
    assert result.samples == BATCH and result.report.cycles == 1


def test_absent_samples_are_zeros_and_left_out():
    dev = device()
    dev.run(full_inputs())
    given = full_inputs(3, seed=5)
    result = dev.run(given)
    image = raw(dev, "image", np.float16).reshape(4, -1)
    assert not image[3].any() and image[2].any()
    events = raw(dev, "events", np.uint8).reshape(3, 4, 2)
    assert not events[:, 3].any() and events[:, 2].any()
    assert raw(dev, "label", np.int32).tolist() == [*given["label"].tolist(), 0]
    assert raw(dev, "scalars", np.uint32)[1] == 3
    assert result.outputs["logits"].shape == (3, 6) and result.outputs["spikes"].shape == (3, 3, 1, 1, 11)


def test_run_scalars_lie_as_the_contract_says_and_advance():
    dev = device()
    dev.run(full_inputs(3), lr=0.125, step=9, seed=2**63 + 5, first_sample=100)
    scalars = raw(dev, "scalars", np.uint8)
    assert scalars[:4].view(np.float32)[0] == 0.125 and scalars[4:8].view(np.uint32)[0] == 3
    assert scalars[16:24].view(np.uint64)[0] == 2**63 + 5
    assert scalars[8:12].view(np.uint32)[0] == 10 and scalars[24:32].view(np.uint64)[0] == 103
    dev.run(full_inputs(2))
    assert scalars[:4].view(np.float32)[0] == 0.125 and scalars[24:32].view(np.uint64)[0] == 105
    dev.reset()
    assert not scalars.any()


@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        ({"lr": float("nan")}, "finite number"),
        ({"lr": "fast"}, "finite number"),
        ({"lr": 1e300}, "too large"),
        ({"step": -1}, "the step must be an integer from 0"),
        ({"seed": 2**64}, "the seed must be an integer"),
        ({"first_sample": 1.5}, "the first sample must be"),
    ],
)
def test_scalars_that_do_not_fit(scalars, message):
    with pytest.raises(H2LearnError, match=message):
        device().run(full_inputs(), **scalars)


def test_programs_without_scalars_take_no_learning_rate():
    dev = device(names=("image", "logits"))
    dev.run({"image": full_inputs()["image"]})
    with pytest.raises(H2LearnError, match="takes no learning rate"):
        dev.run({"image": full_inputs()["image"]}, lr=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "'image' is missing"),
        ({"picture": np.zeros(3)}, "'picture' is unknown"),
        ({"image": np.zeros((4, 5, 2))}, r"must have the shape \[N <= 4, 5, 2, 3\], found \[4, 5, 2\]"),
        ({"image": np.zeros((4, 2, 3, 5))}, r"found \[4, 2, 3, 5\]"),
        ({"image": np.zeros((5, 5, 2, 3))}, "1 to 4 samples, found 5"),
        ({"image": np.zeros((0, 5, 2, 3))}, "1 to 4 samples, found 0"),
        ({"image": np.zeros((2, 5, 2, 3))}, "'image' has 2, 'events' has 4"),
        ({"image": np.zeros((4, 5, 2, 3), complex)}, "must be real numbers, found dtype complex128"),
        ({"image": np.full((4, 5, 2, 3), "a")}, "must be real numbers"),
        ({"image": np.full((4, 5, 2, 3), None)}, "must be real numbers, found dtype object"),
        ({"image": [[1, 2], [3]]}, "is no array"),
        ({"events": np.full((3, 4, 1, 1, 11), 2)}, "every value must be 0 or 1"),
        ({"events": np.full((3, 4, 1, 1, 11), np.nan)}, "every value must be 0 or 1"),
        ({"label": np.zeros(4)}, "must be integers, found dtype float64"),
        ({"label": np.full(4, 2**40)}, "must lie between"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    inputs = {name: value for name, value in (full_inputs() | change).items() if value is not None}
    with pytest.raises(H2LearnError, match=message):
        device().run(inputs)


def test_inputs_that_are_not_finite_are_reported():
    inputs = full_inputs()
    inputs["image"][0, 0, 0, :2] = np.nan, np.inf
    (item,) = device().run(inputs).report.nonfinite
    assert item.where == "input 'image'" and item.count == 2


def test_a_faulty_user_shape_in_the_file_is_refused():
    loaded = program()
    loaded.note["io"][4]["source"] = [7, 21]
    with pytest.raises(H2LearnError, match=r"the user's shape \[7, 21\], its view and the device shape"):
        Device(loaded, execute="reference")
    loaded.note["io"][4]["source"] = "7x20"
    with pytest.raises(H2LearnError, match="must be positive integers, found '7x20'"):
        Device(loaded, execute="reference")


def test_the_users_shape_may_be_flatter_than_the_view():
    loaded = program()
    loaded.note["io"][4]["source"] = [7, 20]
    w = np.random.default_rng(1).normal(size=(7, 20)).astype(np.float32)
    dev = Device(loaded, execute="reference")
    dev.write("conv", w)
    assert (raw(dev, "conv", np.float32).reshape(2, 2, 5, 7) == w.reshape(7, 5, 2, 2).transpose(2, 3, 1, 0)).all()
    assert (dev.parameters["conv"] == w).all()


def test_gradients_are_read_without_the_loss_scale():
    loaded = program(gradient_scale=1024.0)
    loaded.note["io"].append({**loaded.note["io"][4], "role": "gradient", "symbol": "conv"})
    dev = Device(loaded, execute="reference")
    dev.write("conv", np.full((7, 5, 2, 2), 2048.0))
    assert (dev.gradients["conv"] == 2).all() and (dev.parameters["conv"] == 2048).all()


def test_results_in_another_place_become_the_arguments_of_the_next_run():
    loaded = program(names=("conv", "image"))
    loaded.note["io"].append({**loaded.note["io"][0], "symbol": "conv_next"})
    symbol = loaded.symbols["conv"]
    loaded.symbols["conv_next"] = type(symbol)("conv_next", 0x5000, symbol.size, "bss")
    dev = Device(loaded, execute="reference")
    raw(dev, "conv_next", np.float32)[:] = 3
    dev.run({"image": full_inputs()["image"]})
    assert (raw(dev, "conv", np.float32) == 3).all()
