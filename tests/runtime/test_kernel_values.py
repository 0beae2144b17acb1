"""The plain reference against independent float64 formulas, exactly: dyadic operands make every sum exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from h2learn.backends.h2learn import isa, numerics
from h2learn.runtime import reference
from h2learn.runtime.kernels import loss, vector
from h2learn.runtime.operation import Memories, Operand, Operation, Work, slot_bytes, spans

torch = pytest.importorskip("torch")
functional = torch.nn.functional

Array = npt.NDArray[np.generic]
NAMES = {d.name: {f.name: f.values for f in d.fields} for d in isa.DESCRIPTORS}


def run(
    mnemonic: str, desc: dict[str, int | float | str], inputs: dict[str, Array], init: bool = True, **fields: int
) -> tuple[dict[str, npt.NDArray[np.uint8]], Work]:
    """Execute one instruction with each operand at its own place of one memory; return the operands' bytes after it."""
    row = isa.BY_MNEMONIC[mnemonic]
    kind = next(f.of for f in row.fields if f.kind is isa.Kind.DESC)
    numbers: dict[str, int | float] = dict.fromkeys(NAMES[kind], 0)
    for name, value in desc.items():
        numbers[name] = NAMES[kind][name].index(value) if isinstance(value, str) else value
    names = [f.name for f in row.fields if f.kind is isa.Kind.AREG]
    room = 1 << 20
    operands = {name: Operand("A", index * room) for index, name in enumerate(names)}
    for name in ("pos", "neu", "tick"):
        if name in operands:
            operands[name] = Operand("A", int(inputs.pop(name, np.int64(0))))
    op = Operation(0, mnemonic, operands, numbers, init, fields)
    memories = Memories({"A": len(names) * room})
    for name, value in inputs.items():
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        memories.arrays["A"][operands[name].address :][: data.size] = data
    work = reference.execute(op, memories)
    return {name: memories.arrays["A"][start:end] for name, (start, end) in spans(op).items()}, work


def dyadic(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Sixteenths in (-2, 2), a third of them zero."""
    return (rng.integers(-31, 32, shape) / 16 * (rng.random(shape) > 0.33)).astype(np.float32)


def packed(bits: Array) -> Array:
    return np.packbits(bits, axis=-1, bitorder="little")


def slots(values: npt.NDArray[np.float32], gblk: int) -> Array:
    """Gradient slots of ``[..., k]`` values, written value by value."""
    size = slot_bytes(gblk, 4)
    result = bytearray()
    for row in values.reshape(-1, values.shape[-1]):
        for first in range(0, row.size, gblk):
            part = row[first : first + gblk]
            bitmap = sum(1 << j for j, value in enumerate(part) if value != 0)
            live = b"".join(value.tobytes() for value in part if value != 0)
            result += (bitmap.to_bytes(8, "little") + live).ljust(size, b"\0")
    return np.frombuffer(bytes(result), np.uint8)


def unslotted(data: Array, k: int, gblk: int) -> npt.NDArray[np.float32]:
    blocks, rows = -(-k // gblk), []
    for index, slot in enumerate(data.reshape(-1, slot_bytes(gblk, 4))):
        bitmap, values = int.from_bytes(slot[:8].tobytes(), "little"), iter(slot[8:].copy().view(np.float32))
        row = [next(values) if bitmap >> j & 1 else 0.0 for j in range(min(gblk, k - index % blocks * gblk))]
        rows.append(row)
    return np.array([np.concatenate(rows[i : i + blocks]) for i in range(0, len(rows), blocks)], np.float32)


def as_torch(channels_last: Array) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(channels_last.astype(np.float64), -1, 1).copy())


def channels_last(tensor: torch.Tensor) -> Array:
    return np.moveaxis(tensor.numpy(), 1, -1)


CONVOLUTIONS = [
    # imgs, oh, ow, kh, kw, sh, sw, c, k, fan
    (2, 3, 4, 3, 3, 1, 1, 11, 7, 4),
    (1, 2, 3, 2, 4, 2, 3, 5, 10, 3),
    (3, 1, 1, 1, 1, 1, 1, 19, 6, 8),
    (1, 4, 2, 4, 1, 3, 1, 8, 9, 1),
]


def geometry(case: tuple[int, ...]) -> tuple[dict[str, int | float | str], tuple[int, int]]:
    desc = dict(zip(("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "c", "k", "fan"), case, strict=True))
    rows = (desc["oh"] - 1) * desc["sh"] + desc["kh"]
    return {**desc, "gblk": 4, "dtype": "f32"}, (rows, (desc["ow"] - 1) * desc["sw"] + desc["kw"])


def kernel(weights: Array, kh: int, kw: int) -> torch.Tensor:
    """Device order [taps][c][k] as torch's [k][c][kh][kw]."""
    taps, c, k = weights.shape
    assert taps == kh * kw
    return torch.from_numpy(weights.astype(np.float64).reshape(kh, kw, c, k).transpose(3, 2, 0, 1).copy())


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("init", [True, False])
def test_forward_convolution_of_spikes_and_of_reals(case: tuple[int, ...], init: bool) -> None:
    imgs, oh, ow, kh, kw, sh, sw, c, k, fan = case
    desc, (ih, iw) = geometry(case)
    rng = np.random.default_rng(1)
    weights, spikes, before = (
        dyadic(rng, kh * kw, c, k),
        rng.random((imgs, ih, iw, c)) < 0.4,
        dyadic(rng, imgs, oh, ow, k),
    )
    filled, work = run("fe.fill", desc, {"w": weights})
    groups = -(-c // fan)
    assert work.counts["entries"] == kh * kw * groups * k * ((1 << fan) - 1)
    result, work = run("fe.run", desc, {"acc": before, "s": packed(spikes), "lut": filled["lut"]}, init)
    expected = channels_last(functional.conv2d(as_torch(spikes), kernel(weights, kh, kw), stride=(sh, sw)))
    start = 0 if init else before
    np.testing.assert_array_equal(result["acc"].view(np.float32).reshape(imgs, oh, ow, k), expected + start)
    assert work.counts["patterns"] == imgs * oh * ow * kh * kw * groups
    reach = functional.conv2d(as_torch(spikes), torch.ones(1, c, kh, kw, dtype=torch.float64), stride=(sh, sw))
    assert work.counts["spikes"] == int(reach.sum())

    x = dyadic(rng, imgs, ih, iw, c)
    result, work = run("be.fwd", desc, {"acc": before, "x": x, "w": weights}, init)
    expected = channels_last(functional.conv2d(as_torch(x), kernel(weights, kh, kw), stride=(sh, sw)))
    np.testing.assert_array_equal(result["acc"].view(np.float32).reshape(imgs, oh, ow, k), expected + start)
    ones = torch.ones(k, c, kh, kw, dtype=torch.float64)
    assert work.counts["products"] == int(functional.conv2d(as_torch(x != 0), ones, stride=(sh, sw)).sum())


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("masked", [0, 1])
def test_input_gradient(case: tuple[int, ...], padding: int, masked: int) -> None:
    imgs, gh, gw, kh, kw, sh, sw, c, k, _ = case
    desc, (rows, columns) = geometry(case)
    py, px = min(padding, kh - 1), min(padding, kw - 1)
    oh, ow = max(rows - 2 * py, 1), max(columns - 2 * px, 1)
    rng = np.random.default_rng(2)
    g, weights, mask = dyadic(rng, imgs, gh, gw, k), dyadic(rng, kh * kw, c, k), rng.random((imgs, oh, ow, c)) < 0.5
    desc |= {"oh": oh, "ow": ow, "gh": gh, "gw": gw, "py": py, "px": px}
    inputs = {"g": slots(g, 4), "w": weights, "m": packed(mask)}
    full = channels_last(functional.conv_transpose2d(as_torch(g), kernel(weights, kh, kw), stride=(sh, sw)))
    expected = full[:, py : py + oh, px : px + ow] * (mask if masked else 1)
    live = channels_last(
        functional.conv_transpose2d(as_torch(g != 0), torch.ones(k, c, kh, kw, dtype=torch.float64), stride=(sh, sw))
    )[:, py : py + oh, px : px + ow]
    cycles = {}
    for mode, name in enumerate(("dense", "in", "out", "dual")):
        result, work = run("be.run", desc, inputs, mode=mode, masked=masked)
        np.testing.assert_array_equal(result["acc"].view(np.float32).reshape(imgs, oh, ow, c), expected)
        assert work.counts["products"] == int((live * (mask if masked else 1)).sum())
        assert work.counts["pe_cycles"] == work.counts[f"pe_cycles_{name}"]
        cycles[name] = work.counts["issue_cycles"]
    rows = -(-(mask.sum(axis=-1) if masked else c) // 16)  # of the live outputs, per position
    assert cycles["dual"] == int((live[..., 0] * rows).sum())
    assert cycles["dual"] <= min(cycles["in"], cycles["out"]) <= cycles["dense"]


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("init", [True, False])
def test_weight_gradients(case: tuple[int, ...], init: bool) -> None:
    imgs, oh, ow, kh, kw, sh, sw, c, k, _ = case
    desc, (ih, iw) = geometry(case)
    rng = np.random.default_rng(3)
    g, before = dyadic(rng, imgs, oh, ow, k), dyadic(rng, kh * kw, c, k)
    spikes, x = rng.random((imgs, ih, iw, c)) < 0.4, dyadic(rng, imgs, ih, iw, c)
    for mnemonic, operand, data, dense in (("wu.run", "s", packed(spikes), spikes), ("be.wgt", "x", x, x)):
        result, work = run(mnemonic, desc, {"acc": before, operand: data, "g": slots(g, 4)}, init)
        shape = (k, c, kh, kw)
        gradient = torch.nn.grad.conv2d_weight(as_torch(dense), shape, as_torch(g), stride=(sh, sw)).numpy()
        expected = gradient.transpose(2, 3, 1, 0).reshape(kh * kw, c, k) + (0 if init else before)
        np.testing.assert_array_equal(result["acc"].view(np.float32).reshape(kh * kw, c, k), expected)
        assert work.counts["nonfinite"] == 0


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("detach", ["no", "yes"])
@pytest.mark.parametrize("surrogate", ["rectangular", "triangular"])
def test_neuron_and_its_gradient_over_time_agree_with_autograd(reset: str, detach: str, surrogate: str) -> None:
    steps, n, k, gblk = 3, 5, 11, 8
    rng = np.random.default_rng(4)
    theta, v_reset, alpha, width, height = 0.75, 0.25, 0.5, 0.5, 2.0
    currents, bias, upstream = dyadic(rng, steps, n, k), dyadic(rng, k), dyadic(rng, steps, n, k)
    par = np.stack([bias, np.full(k, alpha), np.full(k, theta), np.full(k, v_reset)]).astype(np.float32)
    desc: dict[str, int | float | str] = {"n": n, "k": k, "gblk": gblk, "dtype": "f32", "reset": reset, "spike": "gt"}
    desc |= {
        "surrogate": surrogate,
        "width": width,
        "height": height,
        "detach": detach,
        "save_u": "yes",
        "save_m": "yes",
    }

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, u: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(u)
            return (u > theta).double()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> torch.Tensor:
            distance = (ctx.saved_tensors[0] - theta).abs()
            slope = height * (1 - distance / width) if surrogate == "triangular" else torch.full_like(grad, height)
            return grad * torch.where(distance < width, slope, torch.zeros_like(slope))

    x = torch.from_numpy(currents.astype(np.float64)).requires_grad_()
    u, s, loss, expected = torch.zeros(n, k).double(), torch.zeros(n, k).double(), 0, []
    for t in range(steps):
        gate = s.detach() if detach == "yes" else s
        kept = {"hard": u * (1 - gate) + v_reset * gate, "soft": u - theta * gate, "none": u}[reset]
        u = alpha * kept + (x[t] + torch.from_numpy(bias.astype(np.float64)))
        s = Spike.apply(u)
        expected.append((u.detach().numpy(), s.detach().numpy()))
        loss = loss + (s * torch.from_numpy(upstream[t].astype(np.float64))).sum()
    loss.backward()

    state: dict[str, Array] = {}
    saved = []
    for t in range(steps):
        result, work = run("v.lif", desc, {"acc": currents[t], "par": par, **state}, init=t == 0)
        state = {"us": result["us"], "ss": result["ss"]}
        membrane, spikes = expected[t]
        np.testing.assert_array_equal(result["us"].view(np.float32).reshape(n, k), membrane)
        np.testing.assert_array_equal(result["so"].reshape(n, -1), packed(spikes == 1))
        np.testing.assert_array_equal(result["mo"].reshape(n, -1), packed(np.abs(membrane - theta) < width))
        assert work.counts["spikes"] == spikes.sum()
        saved.append((result["uo"].copy(), result["so"].copy()))
    carried: dict[str, Array] = {}
    for t in reversed(range(steps)):
        inputs = {"gs": upstream[t], "u": saved[t][0], "s": saved[t][1], "par": par, **carried}
        result, work = run("v.grad", desc, inputs, init=t == steps - 1)
        carried = {"gc": result["gc"]}
        assert x.grad is not None
        gradient = x.grad[t].numpy()
        np.testing.assert_array_equal(unslotted(result["go"], k, gblk), gradient)
        assert work.counts["live_outputs"] == np.count_nonzero(gradient)


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("bits", [True, False])
def test_pooling_and_its_gradient(kind: str, bits: bool) -> None:
    imgs, oh, ow, kh, kw, sh, sw, k = 2, 3, 2, 2, 4, 3, 2, 10
    ih, iw = (oh - 1) * sh + kh, (ow - 1) * sw + kw
    rng = np.random.default_rng(5)
    source = (rng.random((imgs, ih, iw, k)) < 0.3) if bits else dyadic(rng, imgs, ih, iw, k)
    formats = ("bits", "storage" if kind == "avg" else "bits") if bits else ("f32", "f32")
    desc = {"imgs": imgs, "oh": oh, "ow": ow, "kh": kh, "kw": kw, "sh": sh, "sw": sw, "k": k}
    full: dict[str, int | float | str] = {**desc, "kind": kind, "src": formats[0], "dst": formats[1], "dtype": "f32"}
    result, _ = run("v.pool", full, {"src": packed(source) if bits else source})
    x = as_torch(source)
    if kind == "avg":
        expected = functional.avg_pool2d(x, (kh, kw), (sh, sw))
    else:
        expected, indices = functional.max_pool2d(x, (kh, kw), (sh, sw), return_indices=True)
    if formats[1] == "bits":
        np.testing.assert_array_equal(result["dst"].reshape(imgs, oh, ow, -1), packed(channels_last(expected) == 1))
    else:
        np.testing.assert_array_equal(result["dst"].view(np.float32).reshape(imgs, oh, ow, k), channels_last(expected))
    g, winners = dyadic(rng, imgs, oh, ow, k), {}
    if kind == "max":
        winners = {"idx": result["idx"]}
        first = np.arange(oh)[:, None] * sh * iw + np.arange(ow) * sw
        taps = np.arange(kh)[:, None] * iw + np.arange(kw)
        flat = first[None, :, :, None] + taps.reshape(-1)[result["idx"].reshape(imgs, oh, ow, k)]
        np.testing.assert_array_equal(flat, channels_last(indices))
    # the gradient by scattering every window element
    scattered = np.zeros((imgs, ih, iw, k))
    for tap in range(kh * kw):
        chosen = result["idx"].reshape(imgs, oh, ow, k) == tap if kind == "max" else 1 / (kh * kw)
        scattered[:, tap // kw :: sh, tap % kw :: sw][:, :oh, :ow] += g * chosen
    full |= {"oh": ih, "ow": iw, "gh": oh, "gw": ow, "gblk": 4}
    for form, data in (("f32", g), ("slots", slots(g, 4))):
        result, _ = run("v.unpool", full | {"src": form, "dst": form}, {"src": data, **winners})
        found = result["dst"].view(np.float32) if form == "f32" else unslotted(result["dst"], k, 4)
        np.testing.assert_array_equal(found.reshape(imgs, ih, iw, k), scattered)


def test_the_exponential_of_the_kernels_is_that_of_the_levels() -> None:
    rng = np.random.default_rng(9)
    edges = [-np.inf, -87.3, -87.29999, -1e-30, -0.0, 0.0, 88.69999, 88.7, np.inf, np.nan]
    values = np.concatenate([rng.uniform(-90, 90, 20000), rng.normal(0, 1, 20000), edges]).astype(np.float32)
    found = np.array([vector.exponential(value) for value in values], np.float32)
    np.testing.assert_array_equal(found, numerics.exp(values))


def test_the_logarithm_of_the_kernels_is_that_of_the_levels() -> None:
    rng = np.random.default_rng(10)
    edges = [-np.inf, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.17549435e-38, 0.5, 1.0, 3e38, np.inf, np.nan]
    values = np.concatenate([np.exp(rng.uniform(-80, 80, 20000)), rng.uniform(0, 10, 20000), edges]).astype(np.float32)
    found = np.array([loss.logarithm(value) for value in values], np.float32)
    np.testing.assert_array_equal(found, numerics.log(values))


def test_reductions() -> None:
    steps, n, k, gblk = 4, 3, 11, 8
    rng = np.random.default_rng(6)
    values, spikes = dyadic(rng, steps, n, k), rng.random((steps, n, k)) < 0.5
    desc: dict[str, int | float | str] = {"n": n, "k": k, "steps": steps, "gblk": gblk, "dtype": "f32"}
    for kind, source, expected in (
        ("rate", packed(spikes), spikes.mean(axis=0)),
        ("mean", values, values.astype(np.float64).mean(axis=0)),
        ("last", values, values[-1]),
    ):
        result, _ = run("v.reduce", desc | {"kind": kind}, {"src": source})
        np.testing.assert_array_equal(result["dst"].view(np.float32).reshape(n, k), expected)
    result, _ = run("v.reduce", desc | {"kind": "tsum"}, {"src": slots(values, gblk)})
    np.testing.assert_array_equal(unslotted(result["dst"], k, gblk), values.astype(np.float64).sum(axis=0))
    before = dyadic(rng, k)
    source = slots(values, gblk)
    result, _ = run("v.reduce", desc | {"kind": "bias", "n": steps * n}, {"src": source, "dst": before}, init=False)
    np.testing.assert_array_equal(result["dst"].view(np.float32), before + values.astype(np.float64).sum(axis=(0, 1)))


@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
def test_loss_and_its_gradient_against_torch(kind: str) -> None:
    n, k, valid = 6, 5, 4
    rng = np.random.default_rng(7)
    logits, labels = dyadic(rng, n, k) * 3, rng.integers(0, k, n).astype(np.int32)
    scalars = np.zeros(8, np.uint32)
    scalars[1] = valid
    desc: dict[str, int | float | str] = {"n": n, "k": k, "kind": kind, "p0": 0.5, "hit": 1.0, "share": 1.0}
    result, _ = run("v.loss", desc, {"logits": logits, "label": labels, "scal": scalars})
    z = torch.from_numpy(logits[:valid].astype(np.float64)).requires_grad_()
    target = torch.from_numpy(labels[:valid].astype(np.int64))
    hot = functional.one_hot(target, k).double()
    loss = functional.cross_entropy(z, target) if kind == "cross_entropy" else functional.mse_loss(z, hot)
    loss.backward()
    assert z.grad is not None
    np.testing.assert_allclose(result["loss"].view(np.float32)[0], loss.item(), rtol=1e-6)
    gradient = result["grad"].view(np.float32).reshape(n, k)
    np.testing.assert_allclose(gradient[:valid], z.grad.numpy() / 2, rtol=1e-5, atol=1e-8)
    assert not gradient[valid:].any()


OPTIMIZERS = [
    ("sgd", torch.optim.SGD, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.5}),
    ("sgd", torch.optim.SGD, {"momentum": 0.5, "weight_decay": 0.125}),
    ("nesterov", torch.optim.SGD, {"momentum": 0.5, "nesterov": True}),
    ("adam", torch.optim.Adam, {"weight_decay": 0.0}),
    ("adam", torch.optim.Adam, {"weight_decay": 0.25, "betas": (0.5, 0.9)}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.25, "eps": 1e-3}),
]


@pytest.mark.parametrize(("kind", "optimizer", "options"), OPTIMIZERS)
def test_optimizer_against_torch(kind: str, optimizer: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    start, gradients = dyadic(rng, 37), dyadic(rng, 4, 37)
    parameter = torch.nn.Parameter(torch.from_numpy(start.astype(np.float64)))
    torch_optimizer = optimizer([parameter], lr=0.25, **options)
    settings = {"betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0} | options
    desc: dict[str, int | float | str] = {"n": 37, "kind": kind, "dtype": "f16", "scale": 0.5}
    desc |= {"momentum": settings["momentum"], "decay": settings["weight_decay"], "eps": settings["eps"]}
    desc |= {f"rate{n}": 1 - beta for n, beta in enumerate(settings["betas"], start=1)}
    device: dict[str, Array] = {"p": start}
    for count, gradient in enumerate(gradients):
        scalars = np.array([np.float32(0.25).view(np.uint32), 0, count, 0, 0, 0, 0, 0], np.uint32)
        parameter.grad = torch.from_numpy(gradient.astype(np.float64))
        torch_optimizer.step()
        result, _ = run("v.opt", desc, {**device, "g": gradient * 2, "scal": scalars})
        device = {name: result[name].copy() for name in ("p", "mom", "sq") if name in result}
        expected = parameter.detach().numpy()
        tolerance = 0.0 if not options or options == {"momentum": 0.5} else 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(result["p"].view(np.float32), expected, rtol=0, atol=tolerance)
        stored = result["p"].view(np.float32).astype(np.float16)
        np.testing.assert_array_equal(result["w"].view(np.float16), stored)


def test_random_spikes_follow_their_rates_and_their_counter() -> None:
    n, k = 200, 13
    rates = np.tile(np.linspace(0, 1, k, dtype=np.float32), (n, 1))
    scalars = np.zeros(32, np.uint8)
    scalars[16:24] = np.uint64([1 << 40 | 77]).view(np.uint8)
    desc: dict[str, int | float | str] = {"n": n, "steps": 1, "k": k, "stream": 3}

    def draw(rows: slice, **coordinates: int) -> Array:
        inputs = {"src": rates[rows], "scal": scalars, **{name: np.int64(v) for name, v in coordinates.items()}}
        result, _ = run("v.rng", desc | {"n": len(rates[rows])}, inputs)
        return np.unpackbits(result["dst"].reshape(-1, 2), axis=1, count=k, bitorder="little")

    spikes = draw(slice(0, n), tick=5)
    np.testing.assert_allclose(spikes.mean(axis=0), rates[0], atol=0.12)
    assert not spikes[:, 0].any() and spikes[:, -1].all()
    np.testing.assert_array_equal(draw(slice(50, 60), pos=50, tick=5), spikes[50:60])
    assert not np.array_equal(draw(slice(0, n), tick=6), spikes)


def test_random_spikes_of_several_positions_number_their_neurons_on() -> None:
    samples, steps, k = 3, 4, 5
    scalars = np.zeros(32, np.uint8)
    desc: dict[str, int | float | str] = {"n": samples, "steps": steps, "k": k, "stream": 3}
    rates = np.full((samples, steps, k), 0.5, np.float32)
    result, work = run("v.rng", desc, {"src": rates, "scal": scalars, "neu": np.int64(7)})
    spikes = np.unpackbits(result["dst"].reshape(samples, steps, 1), axis=2, count=k, bitorder="little")
    sample, neuron = np.arange(samples)[:, None], 7 + np.arange(steps * k)
    expected = (numerics.uniform(0, 3, sample, neuron, 0) < 0.5).reshape(samples, steps, k)
    np.testing.assert_array_equal(spikes, expected)
    assert work.counts["spikes"] == expected.sum()


def test_dropout_keeps_what_the_same_numbers_say_and_scales_it() -> None:
    samples, positions, k = 3, 4, 5
    scalars = np.zeros(32, np.uint8)
    scalars[16:32] = np.uint64([9, 2]).view(np.uint8)
    values = np.random.default_rng(3).normal(size=(samples, positions, k)).astype(np.float32)
    desc: dict[str, int | float | str] = {"n": samples, "steps": positions, "k": k, "stream": 4, "p0": 0.75}
    desc |= {"share": 1 / 0.75, "a": "f32", "dst": "f32"}
    inputs = {"a": values, "scal": scalars, "pos": np.int64(1), "neu": np.int64(7), "tick": np.int64(6)}
    result, work = run("v.drop", desc, inputs)
    draws = numerics.uniform(9, 4, 3 + np.arange(samples)[:, None], 7 + np.arange(positions * k), 6)
    kept = draws.reshape(values.shape) < np.float32(0.75)
    assert 0 < kept.sum() < kept.size and work.counts["elements"] == kept.size
    expected = np.where(kept, values * np.float32(1 / 0.75), np.float32(0))
    np.testing.assert_array_equal(result["dst"].view(np.float32).reshape(values.shape), expected)


def test_strided_load_with_zero_fill_pads_an_image() -> None:
    image = np.arange(1, 2 * 3 * 4 * 5 + 1, dtype=np.uint8).reshape(2, 3, 4, 5)
    desc: dict[str, int | float | str] = {"run": 5, "n0": 1, "n1": 2, "n2": 5, "n3": 6, "ylim": 3, "xlim": 4}
    desc |= {"ss1": 60, "ss2": 20, "ss3": 5, "ds1": 150, "ds2": 30, "ds3": 5}
    row = isa.BY_MNEMONIC["ld"]
    numbers = dict.fromkeys(NAMES["xfer"], 0) | desc
    operands = {"dst": Operand("S", 0), "src": Operand("DRAM", 4096 - 25), "y": Operand("S", -1), "x": Operand("S", -1)}
    assert row.writes == ("dst",)
    memories = Memories({"S": 300, "DRAM": image.size}, dram_base=4096)
    memories.arrays["DRAM"][:] = image.reshape(-1)
    memories.arrays["S"][:] = 255
    work = reference.execute(Operation(0, "ld", operands, numbers, False, {}), memories)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_array_equal(memories.arrays["S"].reshape(padded.shape), padded)
    assert work.counts == {"rows": 24, "zero_rows": 36, "bytes": 120}
