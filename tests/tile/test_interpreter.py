"""The ``tile`` interpreter: single jobs against formulas written down here, windows, rings, leading indices.

Values are small multiples of powers of two, so that sums are exact in any order, unless a test is about rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from xdsl.dialects import builtin, func
from xdsl.ir import Block, Region

from h2learn.backends.h2learn import numerics
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.passes.stage_builder import StageBuilder
from h2learn.dialects import tile
from h2learn.dialects.common import IoEntry, set_io
from h2learn.dialects.tile.interpreter import interpret

F64 = npt.NDArray[np.float64]
HERE = builtin.UnknownLoc()


def module_of(block: Block, arguments: Sequence[str], results: Sequence[int]) -> builtin.ModuleOp:
    """Return a module whose ``@main`` returns the arguments with the given numbers after all stages."""
    block.add_op(func.ReturnOp(*(block.args[n] for n in results)))
    main = func.FuncOp("main", ([a.type for a in block.args], [block.args[n].type for n in results]), Region(block))
    module = builtin.ModuleOp([main])
    set_io(module, [IoEntry(name, "input") for name in arguments] + [IoEntry(f"r{n}", "output") for n in results])
    module.verify()
    return module


@dataclass
class Held:
    """A buffer before a job: its format and contents (None: undefined)."""

    form: str
    shape: tuple[int, ...]
    values: npt.NDArray[np.generic] | None = None
    gblk: int = 0


def bits(values: npt.ArrayLike) -> Held:
    array = np.asarray(values, bool)
    return Held("bits", array.shape, array)


def real(values: npt.ArrayLike, form: str = "f32") -> Held:
    array = np.asarray(values, np.float32)
    return Held(form, array.shape, array)


def slots(values: npt.ArrayLike, form: str = "slots.f32") -> Held:
    array = np.asarray(values, np.float32)
    return Held(form, array.shape, array, array.shape[-1])


def run(
    kind: type[tile.JobOp],
    buffers: Mapping[str, Held],
    params: dict[str, tile.Param],
    *,
    coords: Sequence[int] = (),
    fresh: bool = True,
) -> dict[str, npt.NDArray[np.generic]]:
    """Load every buffer from a tensor, run one job, store every buffer, and return them by role.

    Not ``fresh``: the job runs twice, and what counts is the second time, when its loop is at 1.
    """
    types = [tile.tensor_type(h.form, h.shape, h.gblk) for h in buffers.values()]
    block = Block(arg_types=types * 2)
    b = StageBuilder(block)
    with b.stage("stage", HERE), b.loop("again", 1 if fresh else 2) as again:
        places = {}
        for tensor, (role, held) in zip(block.args, buffers.items(), strict=False):
            places[role] = b.alloc(role, "A", held.form, held.shape, held.gblk)
            if held.values is not None:
                b.load(tensor, places[role], [0] * len(held.shape), held.shape)
        b.job(kind, places, params, first=[again], coords=coords)
        for tensor, role in zip(block.args[len(buffers) :], buffers, strict=True):
            b.store(tensor, places[role], [0] * len(buffers[role].shape), buffers[role].shape)
    count = len(buffers)
    module = module_of(block, [f"a{n}" for n in range(2 * count)], range(count, 2 * count))
    given = [np.zeros(h.shape) if h.values is None else h.values for h in buffers.values()] * 2
    return dict(zip(buffers, interpret(module, given), strict=True))


def dyadic(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return (rng.integers(-8, 9, shape) / 4).astype(np.float32)


def geometry(imgs: int, oh: int, ow: int, kh: int, kw: int, sh: int, sw: int, c: int, k: int) -> dict[str, tile.Param]:
    return {
        **dict(zip(("imgs", "oh", "ow", "kh", "kw", "sh", "sw"), (imgs, oh, ow, kh, kw, sh, sw), strict=True)),
        **{"c": c, "k": k, "dtype": "f32"},
    }


def windows(x: npt.NDArray[np.generic], p: Mapping[str, tile.Param]) -> F64:
    """Return ``[img, oh, ow, tap, c]``: what every position sees of its input."""
    oh, ow, kh, kw, sh, sw = (int(p[name]) for name in ("oh", "ow", "kh", "kw", "sh", "sw"))
    seen = np.zeros((x.shape[0], oh, ow, kh * kw, x.shape[-1]))
    for y in range(oh):
        for z in range(ow):
            seen[:, y, z] = x[:, y * sh : y * sh + kh, z * sw : z * sw + kw].reshape(len(x), kh * kw, -1)
    return seen


SHAPES = [(2, 3, 2, 1, 1, 1, 1, 5, 3), (1, 2, 3, 3, 2, 2, 1, 4, 8), (3, 1, 1, 2, 2, 1, 1, 9, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_by_look_up(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    p = geometry(*shape)
    imgs, oh, ow, kh, kw, sh, sw, c, k = shape
    s = rng.random((imgs, (oh - 1) * sh + kh, (ow - 1) * sw + kw, c)) < 0.4
    w, acc, fan = dyadic(rng, kh * kw, c, k), dyadic(rng, imgs, oh, ow, k), 4
    groups = -(-c // fan)
    fill = {name: p[name] for name in ("kh", "kw", "c", "k", "dtype")}
    held = {"lut": Held("lut.f32", (kh * kw, groups, 2**fan, k)), "w": real(w)}
    tables = run(tile.FeFillOp, held, {**fill, "fan": fan})["lut"]
    padded = np.concatenate([w, np.zeros((kh * kw, groups * fan - c, k))], axis=1).reshape(kh * kw, groups, fan, k)
    for pattern in range(2**fan):
        chosen = [n for n in range(fan) if pattern >> n & 1]
        assert np.array_equal(tables[:, :, pattern], padded[:, :, chosen].sum(axis=2))
    job = {"acc": real(acc), "s": bits(s), "lut": Held("lut.f32", tables.shape, tables)}
    expected = np.einsum("nyxtc,tck->nyxk", windows(s, p), w)
    for fresh in (True, False):
        out = run(tile.FeRunOp, job, {**p, "fan": fan, "shape": "32x64"}, fresh=fresh)["acc"]
        assert np.array_equal(out, expected + (0 if fresh else acc))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signed", [False, True])
def test_forward_of_numbers_as_bit_planes(shape: tuple[int, ...], signed: bool) -> None:
    """With dyadic weights the look-ups of all planes are the convolution of the numbers."""
    rng = np.random.default_rng(3)
    p = geometry(*shape)
    imgs, oh, ow, kh, kw, sh, sw, c, k = shape
    rows, columns, fan = (oh - 1) * sh + kh, (ow - 1) * sw + kw, 3
    x = rng.integers(-4 if signed else 0, 4 if signed else 8, (imgs, rows, columns, c)) / 2
    form: dict[str, tile.Param] = {"planes": 3, "frac": 1, "signed": "yes" if signed else "no"}
    size: dict[str, tile.Param] = {"n": imgs * rows * columns, "k": c, "dtype": "f32"}
    held = {"src": real(x), "dst": Held("bits", (imgs, rows, columns, 3, c))}
    planes = run(tile.PackOp, held, {**size, **form})["dst"]
    assert np.array_equal(np.tensordot(planes, [0.5, 1, -2 if signed else 2], (3, 0)), x)
    w, acc = dyadic(rng, kh * kw, c, k), dyadic(rng, imgs, oh, ow, k)
    fill = {name: p[name] for name in ("kh", "kw", "c", "k", "dtype")}
    tables = {"lut": Held("lut.f32", (kh * kw, -(-c // fan), 2**fan, k)), "w": real(w)}
    lut = run(tile.FeFillOp, tables, {**fill, "fan": fan})["lut"]
    job = {"acc": real(acc), "s": bits(planes), "lut": Held("lut.f32", lut.shape, lut)}
    for fresh in (True, False):
        out = run(tile.FePlanesOp, job, {**p, **form, "fan": fan, "shape": "32x64"}, fresh=fresh)["acc"]
        assert np.array_equal(out, np.einsum("nyxtc,tck->nyxk", windows(x, p), w) + (0 if fresh else acc))
    with pytest.raises(H2LearnError, match="cannot hold"):
        run(tile.PackOp, {**held, "src": real(x + 0.25)}, {**size, **form})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fresh", [True, False])
def test_forward_by_multiplication(shape: tuple[int, ...], fresh: bool) -> None:
    rng = np.random.default_rng(2)
    p = geometry(*shape)
    imgs, oh, ow, kh, kw, sh, sw, c, k = shape
    x, w = dyadic(rng, imgs, (oh - 1) * sh + kh, (ow - 1) * sw + kw, c), dyadic(rng, kh * kw, c, k)
    acc = dyadic(rng, imgs, oh, ow, k)
    out = run(tile.BeFwdOp, {"acc": real(acc), "x": real(x), "w": real(w)}, p, fresh=fresh)["acc"]
    assert np.array_equal(out, np.einsum("nyxtc,tck->nyxk", windows(x, p), w) + (0 if fresh else acc))


def gradient_params(p: dict[str, tile.Param], gh: int, gw: int, py: int, px: int) -> dict[str, tile.Param]:
    return {**p, "gh": gh, "gw": gw, "py": py, "px": px}


@pytest.mark.parametrize("masked", ["no", "yes"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_input_gradient_scatters_every_gradient_over_its_window(masked: str, stride: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    imgs, gh, gw, (kh, kw), (py, px), (h, w_), c, k = 2, 3, 4, (3, 2), (1, 1), (5, 4), 3, 6
    g, w = dyadic(rng, imgs, gh, gw, k), dyadic(rng, kh * kw, c, k)
    mask = rng.random((imgs, h, w_, c)) < 0.5
    expected = np.zeros((imgs, h, w_, c))
    for y, x, ky, kx in np.ndindex(gh, gw, kh, kw):
        iy, ix = y * stride[0] + ky - py, x * stride[1] + kx - px
        if 0 <= iy < h and 0 <= ix < w_:
            expected[:, iy, ix] += np.einsum("nk,ck->nc", g[:, y, x], w[ky * kw + kx])
    p = gradient_params(geometry(imgs, h, w_, kh, kw, *stride, c, k), gh, gw, py, px)
    job = {"acc": Held("f32", expected.shape), "g": slots(g), "w": real(w)}
    if masked == "yes":
        expected, job["m"] = np.where(mask, expected, 0), bits(mask)
    out = run(tile.BeRunOp, job, {**p, "gblk": k, "mode": "dual", "masked": masked})["acc"]
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fresh", [True, False])
def test_weight_gradients(shape: tuple[int, ...], fresh: bool) -> None:
    rng = np.random.default_rng(4)
    p: dict[str, tile.Param] = {**geometry(*shape), "gblk": shape[-1]}
    imgs, oh, ow, kh, kw, sh, sw, c, k = shape
    size = (imgs, (oh - 1) * sh + kh, (ow - 1) * sw + kw, c)
    s, x, g = rng.random(size) < 0.4, dyadic(rng, *size), dyadic(rng, imgs, oh, ow, k)
    acc = dyadic(rng, kh * kw, c, k)
    start = 0 if fresh else acc
    out = run(tile.WuRunOp, {"acc": real(acc), "s": bits(s), "g": slots(g)}, {**p, "fan": 4}, fresh=fresh)["acc"]
    assert np.array_equal(out, np.einsum("nyxtc,nyxk->tck", windows(s, p), g) + start)
    out = run(tile.BeWgtOp, {"acc": real(acc), "x": real(x), "g": slots(g)}, p, fresh=fresh)["acc"]
    assert np.array_equal(out, np.einsum("nyxtc,nyxk->tck", windows(x, p), g) + start)


def test_sums_run_in_the_order_of_channels() -> None:
    """In float32, ``(1e8 + 1) - 1e8`` is 0 and ``1e8 - 1e8 + 1`` is 1."""
    p = geometry(1, 1, 1, 1, 1, 1, 1, 3, 1)
    for weights, expected in (([1e8, 1, -1e8], 0), ([1e8, -1e8, 1], 1)):
        w = np.array(weights, np.float32).reshape(1, 3, 1)
        x = np.ones((1, 1, 1, 3))
        assert run(tile.BeFwdOp, {"acc": Held("f32", (1, 1, 1, 1)), "x": real(x), "w": real(w)}, p)["acc"] == expected
        lut = run(
            tile.FeFillOp,
            {"lut": Held("lut.f32", (1, 3, 2, 1)), "w": real(w)},
            {"kh": 1, "kw": 1, "c": 3, "k": 1, "fan": 1, "dtype": "f32"},
        )["lut"]
        job = {"acc": Held("f32", (1, 1, 1, 1)), "s": bits(x), "lut": Held("lut.f32", lut.shape, lut)}
        assert run(tile.FeRunOp, job, {**p, "fan": 1, "shape": "32x64"})["acc"] == expected


def test_table_entries_are_rounded_to_storage() -> None:
    """2048 + 1 is 2048 in half precision; (1 + 1) + 2048 is 2050: the last channel comes first."""
    w = np.array([2048, 1, 1], np.float32).reshape(1, 3, 1)
    params: dict[str, tile.Param] = {"kh": 1, "kw": 1, "c": 3, "k": 1, "fan": 3, "dtype": "f16"}
    lut = run(tile.FeFillOp, {"lut": Held("lut.f16", (1, 1, 8, 1)), "w": real(w, "f16")}, params)["lut"]
    assert lut[0, 0, :, 0].tolist() == [0, 2048, 1, 2048, 1, 2048, 2, 2050]


def neuron_params(n: int, k: int, **more: tile.Param) -> dict[str, tile.Param]:
    base: dict[str, tile.Param] = {"n": n, "k": k, "dtype": "f32", "reset": "hard", "spike": "gt", "drive": "plain"}
    base |= {"counted": "no", "most": 0, "bounded": "no", "lowest": 0.0, "periodic": "no", "ublk": 0}
    return {**base, "surrogate": "rectangular", "width": 0.5, "height": 2.0, **more}


PAR = np.array([[0.25, -0.5], [0.5, 1.0], [1.0, 0.75], [0.0, 0.25]], np.float32)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("spike", ["gt", "ge"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_neurons(reset: str, spike: str, fresh: bool) -> None:
    rng = np.random.default_rng(5)
    acc, u, s = (rng.integers(-4, 5, (20, 2)) / 4 for _ in "aus")
    fired = s > 0
    bias, alpha, theta, v_reset = PAR.astype(float)
    kept = {"hard": np.where(fired, v_reset, u), "soft": u - theta * fired, "none": u}[reset]
    membrane = alpha * (0 if fresh else kept) + acc + bias
    job = {"acc": real(acc), "par": real(PAR), "us": real(u), "uo": Held("f32", u.shape), "mo": Held("bits", u.shape)}
    job |= {"ss": bits(fired), "so": Held("bits", u.shape)}
    params = neuron_params(20, 2, reset=reset, spike=spike, save_u="yes", save_m="yes")
    out = run(tile.LifOp, job, params, fresh=fresh)
    assert np.array_equal(out["uo"], membrane) and np.array_equal(out["us"], membrane)
    expected = membrane > theta if spike == "gt" else membrane >= theta
    assert (membrane == theta).any()
    assert np.array_equal(out["so"], expected) and np.array_equal(out["ss"], expected)
    assert np.array_equal(out["mo"], abs(membrane - theta) < 0.5)
    job |= {"uo": Held("inside.f32", u.shape, gblk=2)}
    out = run(tile.LifOp, job, params | {"save_u": "inside", "ublk": 2}, fresh=fresh)
    assert np.array_equal(out["uo"], np.where(out["mo"], membrane, np.nan), equal_nan=True)


def test_a_leaky_integrator_has_no_spikes_and_an_open_mask() -> None:
    u, acc = np.array([[2.0, 0.5]]), np.array([[0.25, 1.0]])
    job = {"acc": real(acc), "par": real(PAR), "us": real(u), "uo": Held("f32", (1, 2)), "mo": Held("bits", (1, 2))}
    params = neuron_params(1, 2, reset="none", spike="never", save_u="yes", save_m="yes")
    out = run(tile.LifOp, job, params, fresh=False)
    assert out["uo"].tolist() == out["us"].tolist() == [[1.5, 1.0]] and out["mo"].all()


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("detach", ["yes", "no"])
@pytest.mark.parametrize("surrogate", ["rectangular", "triangular"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_neuron_gradients(reset: str, surrogate: str, detach: str, fresh: bool) -> None:
    rng = np.random.default_rng(6)
    gs, u, later = (rng.integers(-8, 9, (40, 2)) / 4 for _ in "gul")
    s = rng.random((40, 2)) < 0.5
    _, alpha, theta, v_reset = PAR.astype(float)
    distance = abs(u - theta)
    slope = 2.0 * (distance < 1) * (1 if surrogate == "rectangular" else 1 - distance)
    carried = 0 * later if fresh else later
    reset_path = {"hard": alpha * (u - v_reset), "soft": alpha * theta, "none": 0}[reset] * carried
    through = alpha * carried * (1 if reset != "hard" else ~s)
    expected = slope * (gs - (reset_path if detach == "no" else 0)) + through
    job = {"gs": real(gs), "u": real(u), "s": bits(s), "par": real(PAR), "gc": real(later)}
    params = neuron_params(40, 2, reset=reset, surrogate=surrogate, width=1.0, detach=detach, gblk=2, seen="potential")
    out = run(tile.GradOp, {**job, "go": Held("slots.f32", gs.shape, gblk=2)}, params, fresh=fresh)
    assert np.array_equal(out["go"], expected) and np.array_equal(out["gc"], expected)
    if surrogate == "rectangular" and (detach == "yes" or reset != "hard"):
        job |= {"u": bits(distance < 1), "go": Held("slots.f32", gs.shape, gblk=2)}
        assert np.array_equal(run(tile.GradOp, job, {**params, "seen": "window"}, fresh=fresh)["go"], expected)
    job |= {"u": Held("inside.f32", u.shape, np.where(distance < 1, u, np.nan), gblk=2)}
    job |= {"go": Held("slots.f32", gs.shape, gblk=2)}
    out = run(tile.GradOp, job, {**params, "seen": "inside", "ublk": 2}, fresh=fresh)
    assert np.array_equal(out["go"], expected) and np.array_equal(out["gc"], expected)


def test_gradient_of_a_leaky_integrator() -> None:
    gs, later = np.array([[1.0, 2.0]]), np.array([[4.0, -2.0]])
    params = neuron_params(1, 2, spike="never", reset="none", detach="yes", gblk=2, seen="potential")
    job = {"gs": real(gs), "par": real(PAR), "gc": real(later), "go": Held("slots.f32", (1, 2), gblk=2)}
    assert run(tile.GradOp, job, params, fresh=False)["go"].tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("drive", ["scaled", "synapse", "delayed"])
def test_a_driven_integrator_and_its_gradient(drive: str, fresh: bool) -> None:
    rng = np.random.default_rng(8)
    acc, u, i, gs, gu, gi = (rng.integers(-8, 9, (20, 2)) / 4 for _ in "auigug")
    par = np.concatenate([PAR, [[2.0, -0.5], [0.25, 0.5], [1.0, -1.0], [0.5, 0.25]]]).astype(np.float32)
    bias, alpha, _, _, gain, offset, initial, beta = par.astype(float)
    before = 0 * i if fresh else i
    moved = beta * before + acc + bias
    x = {"scaled": acc + bias, "synapse": moved, "delayed": before}[drive]
    params = neuron_params(20, 2, reset="none", spike="never", save_u="no", save_m="no", drive=drive)
    job = {"acc": real(acc), "par": real(par), "us": real(u)} | ({"cs": real(i)} if drive != "scaled" else {})
    out = run(tile.LifOp, job, params, fresh=fresh)
    assert np.array_equal(out["us"], alpha * (initial if fresh else u) + gain * x + offset)
    assert drive == "scaled" or np.array_equal(out["cs"], moved)

    later, held = (0 * gu, 0 * gi) if fresh else (gu, gi)
    carried = gs + alpha * later
    expected = gain * (later if drive == "delayed" else carried) + (0 if drive == "scaled" else beta * held)
    params = neuron_params(20, 2, reset="none", spike="never", detach="yes", gblk=2, drive=drive, seen="potential")
    job = {"gs": real(gs), "par": real(par), "gc": real(gu), "go": Held("slots.f32", (20, 2), gblk=2)}
    out = run(tile.GradOp, job | ({"gi": real(gi)} if drive != "scaled" else {}), params, fresh=fresh)
    assert np.array_equal(out["gc"], carried) and np.array_equal(out["go"], expected)
    assert drive == "scaled" or np.array_equal(out["gi"], expected)


def pool_params(imgs: int, oh: int, ow: int, k: int, kind: str, src: str, dst: str) -> dict[str, tile.Param]:
    size: dict[str, tile.Param] = {"imgs": imgs, "oh": oh, "ow": ow, "kh": 2, "kw": 3, "sh": 2, "sw": 1, "k": k}
    return {**size, "kind": kind, "dtype": "f32", "gblk": k, "src": src, "dst": dst}


def test_pooling() -> None:
    rng = np.random.default_rng(7)
    x, s = rng.integers(-3, 4, (2, 6, 5, 3)).astype(np.float32), rng.random((2, 6, 5, 3)) < 0.3
    p = {**pool_params(2, 3, 3, 3, "max", "f32", "f32"), "ylim": 0, "xlim": 0}
    for source, held, form in ((x, real(x), "f32"), (s, bits(s), "bits")):
        seen = windows(source, p)
        job = {"dst": Held(form, (2, 3, 3, 3)), "src": held}
        best = {**job, "idx": Held("u8", (2, 3, 3, 3))}
        out = run(tile.PoolOp, best, {**p, "src": form, "dst": form}, coords=[5, 9])
        assert np.array_equal(out["dst"], seen.max(axis=3)) and np.array_equal(out["idx"], seen.argmax(axis=3))
        for kind, expected in (("avg", seen.mean(axis=3)), ("sum", seen.sum(axis=3))):
            target = {**job, "dst": Held("f32", (2, 3, 3, 3))}
            found = run(tile.PoolOp, target, {**p, "kind": kind, "src": form}, coords=[0, 0])["dst"]
            assert np.allclose(found, expected, rtol=1e-6)
        below = run(tile.PoolOp, best, {**p, "src": form, "dst": form, "ylim": 4, "xlim": 6}, coords=[-1, 2])
        masked = np.full(source.shape, -np.inf)
        masked[:, 1:5, :4] = source[:, 1:5, :4]
        assert np.array_equal(below["idx"], windows(masked, p).argmax(axis=3))
        assert np.array_equal(below["dst"], windows(masked, p).max(axis=3))


@pytest.mark.parametrize("kind", ["avg", "max", "sum"])
@pytest.mark.parametrize("form", ["f32", "slots"])
def test_gradient_of_pooling(kind: str, form: str) -> None:
    rng = np.random.default_rng(8)
    g, winners = 6 * dyadic(rng, 2, 3, 3, 3), rng.integers(0, 6, (2, 3, 3, 3)).astype(np.uint8)
    expected = np.zeros((2, 6, 5, 3))
    for y, x, ky, kx in np.ndindex(3, 3, 2, 3):
        winning = winners[:, y, x] == ky * 3 + kx
        share = g[:, y, x] * {"avg": 1 / 6, "max": winning, "sum": 1}[kind]
        expected[:, 2 * y + ky, x + kx] += share
    held = real(g) if form == "f32" else slots(g)
    job = {"dst": Held(held.form, expected.shape, gblk=held.gblk), "src": held}
    if kind == "max":
        job["idx"] = Held("u8", winners.shape, winners)
    params = gradient_params(pool_params(2, 6, 5, 3, kind, form, form), 3, 3, 0, 0)
    assert np.array_equal(run(tile.UnpoolOp, job, params)["dst"], expected)


def scalars(rate: float = 0.5, valid: int = 4, seed: int = 2**40 + 7, first: int = 9) -> Held:
    raw = np.array([rate], "<f4").tobytes() + np.array([valid, 0, 0], "<u4").tobytes()
    words = np.frombuffer(raw + np.array([seed, first], "<u8").tobytes(), "<i4")
    return Held("i32", (8,), words)


def test_random_spikes_depend_on_sample_neuron_and_step() -> None:
    chance = np.random.default_rng(9).random((2, 3, 4)).astype(np.float32)
    params: dict[str, tile.Param] = {"n": 2, "positions": 3, "k": 4, "stream": 5}
    job = {"dst": Held("bits", (2, 3, 4)), "src": real(chance), "scal": scalars()}
    out = run(tile.RngOp, job, params, coords=[6, 20, 3])["dst"]
    for i, j, ch in np.ndindex(2, 3, 4):
        draw = numerics.uniform(2**40 + 7, 5, np.array([9 + 6 + i]), np.array([20 + j * 4 + ch]), 3)
        assert out[i, j, ch] == bool((draw < chance[i, j, ch]).item())


def test_reductions() -> None:
    rng = np.random.default_rng(10)
    s, u = rng.random((4, 3, 1, 1, 5)) < 0.5, dyadic(rng, 4, 3, 1, 1, 5)
    base: dict[str, tile.Param] = {"n": 3, "k": 5, "steps": 4, "dtype": "f32", "gblk": 0}
    out = Held("f32", (3, 1, 1, 5))
    cases = [("rate", bits(s), s.mean(axis=0)), ("mean", real(u), u.mean(axis=0)), ("last", real(u), u[-1])]
    for kind, source, expected in cases:
        assert np.array_equal(run(tile.ReduceOp, {"dst": out, "src": source}, {**base, "kind": kind})["dst"], expected)
    job = {"dst": Held("slots.f32", (3, 1, 1, 5), gblk=5), "src": slots(u)}
    assert np.array_equal(run(tile.ReduceOp, job, {**base, "kind": "tsum", "gblk": 5})["dst"], u.sum(axis=0))
    total = dyadic(rng, 5)
    bias: dict[str, tile.Param] = {**base, "n": 12, "steps": 1, "kind": "bias", "gblk": 5}
    for fresh in (True, False):
        summed = run(tile.ReduceOp, {"dst": real(total), "src": slots(u)}, bias, fresh=fresh)["dst"]
        assert np.array_equal(summed, u.reshape(12, 5).sum(axis=0) + (0 if fresh else total))


def test_time_sums_run_backwards() -> None:
    g = np.array([1, -1e8, 1e8], np.float32).reshape(3, 1, 1)
    base: dict[str, tile.Param] = {"n": 1, "k": 1, "steps": 3, "kind": "tsum", "dtype": "f32", "gblk": 1}
    out = run(tile.ReduceOp, {"dst": Held("slots.f32", (1, 1), gblk=1), "src": slots(g)}, base)["dst"]
    assert out.item() == 1


TARGETS: dict[str, tile.Param] = {"hit": 0.75, "miss": 0.25, "share": 3.0}


@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
def test_losses(kind: str) -> None:
    rng = np.random.default_rng(11)
    logits, labels = rng.normal(size=(3, 5)).astype(np.float32), np.array([4, 0, 2], np.int32)
    params: dict[str, tile.Param] = {"n": 3, "k": 5, "kind": kind, "scale": 8.0, **TARGETS}
    job = {
        "loss": real([2.0]),
        "grad": Held("f32", (3, 5)),
        "logits": real(logits),
        "label": Held("i32", (3,), labels),
        "scal": scalars(valid=4),
    }
    target = np.eye(5)[labels]
    if kind == "cross_entropy":
        soft = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
        each, slope = -np.log((soft * target).sum(axis=1)), soft - target
    else:
        goal = np.where(target, 0.75, 0.25)
        each, slope = 3 * ((logits - goal) ** 2).mean(axis=1), 2 * (logits - goal) / 5
    live = np.array([1, 1, 0])  # samples 2, 3, 4 of the batch, of which 4 are there
    for fresh in (True, False):
        out = run(tile.LossOp, job, params, coords=[2], fresh=fresh)
        assert np.allclose(out["loss"], (each * live).sum() / 4 + (0 if fresh else 2), rtol=1e-6)
        assert np.allclose(out["grad"], slope * live[:, None] / 4 * 8, rtol=1e-5, atol=1e-7)


def test_a_label_that_is_no_class_is_refused() -> None:
    params: dict[str, tile.Param] = {"n": 1, "k": 2, "kind": "mse", "scale": 1.0, **TARGETS}
    job = {"loss": Held("f32", (1,)), "grad": Held("f32", (1, 2)), "logits": real([[0, 0]])}
    with pytest.raises(ValueError, match=r"label 2 is outside 0\.\.1"):
        run(
            tile.LossOp,
            {**job, "label": Held("i32", (1,), np.array([2], np.int32)), "scal": scalars()},
            params,
            coords=[0],
        )


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_optimizer(momentum: float, dtype: str) -> None:
    rng = np.random.default_rng(12)
    p, g, m = (dyadic(rng, 2, 3) for _ in "pgm")
    params: dict[str, tile.Param] = {"n": 6, "kind": "sgd", "dtype": dtype, "momentum": momentum, "scale": 0.25}
    params |= {"decay": 0.0, "rate1": 1.0, "rate2": 1.0, "eps": 0.0}
    job = {"p": real(p + 2**-12), "g": real(g)}
    if momentum:
        job["mom"] = real(m)
    if dtype == "f16":
        job["w"] = Held("f16", (2, 3))
    out = run(tile.OptOp, {**job, "scal": scalars(rate=0.5)}, params)
    change = g * 0.25 + (momentum * m if momentum else 0)
    assert np.array_equal(out["p"], p + 2**-12 - 0.5 * change)
    if momentum:
        assert np.array_equal(out["mom"], change)
    if dtype == "f16":
        assert np.array_equal(out["w"], out["p"].astype(np.float16)) and not np.array_equal(out["w"], out["p"])


def copies(
    shape: tuple[int, ...], tile_shape: tuple[int, ...], trips: int, start: Sequence[int], step: Sequence[int]
) -> builtin.ModuleOp:
    """Return a module that copies windows of tensor 0 into the same windows, shifted to 0, of tensor 1."""
    block = Block(arg_types=[tile.tensor_type("f32", shape), tile.tensor_type("f32", (trips, *tile_shape))])
    b = StageBuilder(block)
    with b.stage("copy", HERE), b.loop("i", trips) as i:
        held = b.alloc("held", "A", "f32", tile_shape)
        b.load(block.args[0], held, [i * s + o for s, o in zip(step, start, strict=True)], tile_shape)
        b.store(block.args[1], held, [i, *(0 for _ in tile_shape)], (1, *tile_shape))
    return module_of(block, ["x", "y"], [1])


@pytest.mark.parametrize(
    ("start", "step"), [((-1, -2), (2, 0)), ((0, 3), (1, -2)), ((5, 5), (0, 0)), ((-9, 0), (1, 1))]
)
def test_windows_outside_a_tensor_read_as_zero(start: tuple[int, int], step: tuple[int, int]) -> None:
    x = np.arange(1.0, 31).reshape(6, 5)
    (out,) = interpret(copies((6, 5), (3, 4), 3, start, step), [x, np.full((3, 3, 4), 7)])
    for i, y, z in np.ndindex(3, 3, 4):
        row, column = start[0] + i * step[0] + y, start[1] + i * step[1] + z
        assert out[i, y, z] == (x[row, column] if 0 <= row < 6 and 0 <= column < 5 else 0)


def test_windows_outside_a_tensor_are_not_written() -> None:
    block = Block(arg_types=[tile.tensor_type("f32", (2, 2)), tile.tensor_type("f32", (3, 3))])
    b = StageBuilder(block)
    with b.stage("copy", HERE):
        held = b.alloc("held", "A", "f32", (2, 2))
        b.load(block.args[0], held, [0, 0], (2, 2))
        for start in ([-1, -1], [2, 2], [4, 0]):
            b.store(block.args[1], held, start, (2, 2))
    (out,) = interpret(module_of(block, ["x", "y"], [1]), [np.array([[1, 2], [3, 4]]), np.zeros((3, 3))])
    assert out.tolist() == [[4, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_leading_indices_pick_a_slice_of_a_buffer() -> None:
    """Time runs backwards over a buffer that was loaded whole."""
    block = Block(arg_types=[tile.tensor_type("f32", (4, 3)), tile.tensor_type("f32", (4, 3))])
    b = StageBuilder(block)
    with b.stage("copy", HERE):
        held = b.alloc("held", "A", "f32", (4, 3))
        b.load(block.args[0], held, [0, 0], (4, 3))
        with b.loop("t", 4) as t:
            b.store(block.args[1], held, [t, 0], (1, 3), at=t * -1 + 3)
    (out,) = interpret(module_of(block, ["x", "y"], [1]), [np.arange(12).reshape(4, 3), np.zeros((4, 3))])
    assert np.array_equal(out, np.arange(12).reshape(4, 3)[::-1])


def test_every_allocation_is_fresh() -> None:
    """What an iteration leaves behind is poison in the next one; a buffer outside the loop stays."""
    block = Block(arg_types=[tile.tensor_type("f32", (2, 2)), tile.tensor_type("f32", (2, 2))])
    b = StageBuilder(block)
    params: dict[str, tile.Param] = {"n": 1, "k": 2, "steps": 1, "kind": "last", "dtype": "f32", "gblk": 0}
    with b.stage("copy", HERE):
        kept = b.alloc("kept", "A", "f32", (1, 2), slots=1)
        b.load(block.args[0], kept, [0, 0], (1, 2))
        with b.loop("i", 2) as i:
            lost = b.alloc("lost", "A", "f32", (1, 2), slots=1)
            b.store(block.args[1], lost, [i, 0], (1, 2))
            b.job(tile.ReduceOp, {"dst": lost, "src": kept}, params)
        b.store(block.args[0], kept, [1, 0], (1, 2))
    first, second = interpret(module_of(block, ["x", "y"], [0, 1]), [np.array([[1, 2], [3, 4]]), np.zeros((2, 2))])
    assert first.tolist() == [[1, 2], [1, 2]] and np.isnan(second).all()


def test_a_job_starts_fresh_when_all_its_counters_are_zero() -> None:
    block = Block(arg_types=[tile.tensor_type("slots.f32", (3, 2, 1), 1), tile.tensor_type("f32", (3, 2, 1))])
    b = StageBuilder(block)
    params: dict[str, tile.Param] = {"n": 1, "k": 1, "steps": 1, "kind": "bias", "dtype": "f32", "gblk": 1}
    with b.stage("sum", HERE):
        total = b.alloc("total", "A", "f32", (1,), slots=1)
        with b.loop("i", 3) as i, b.loop("j", 2) as j:
            g = b.alloc("g", "G", "slots.f32", (1, 1), 1)
            b.load(block.args[0], g, [i, j, 0], (1, 1, 1))
            b.job(tile.ReduceOp, {"dst": total, "src": g}, params, first=[j])
            b.store(block.args[1], total, [i, j, 0], (1, 1, 1))
    values = np.array([[1, 2], [3, 4], [5, 6]]).reshape(3, 2, 1)
    (out,) = interpret(module_of(block, ["g", "y"], [1]), [values, np.zeros((3, 2, 1))])
    assert out[..., 0].tolist() == [[1, 3], [3, 7], [5, 11]]


def test_arguments_stay_as_they_are_and_half_precision_is_rounded() -> None:
    block = Block(arg_types=[tile.tensor_type("f16", (2,)), tile.tensor_type("f32", (2,))])
    given = [np.array([1 + 2**-12, 3], np.float32), np.array([1 + 2**-12, 3], np.float32)]
    out = interpret(module_of(block, ["x", "y"], [0, 1]), given)
    assert out[0].tolist() == [1, 3] and out[1].tolist() == given[1].tolist()
    assert given[0][0] == np.float32(1 + 2**-12)


def test_constants_and_storage_copies() -> None:
    block = Block(arg_types=[tile.tensor_type("f32", (1, 2)), tile.tensor_type("f32", (5, 2))])
    b = StageBuilder(block)
    rows = b.tensor("rows", "f32", (4, 2), rows=((0.0,), (0.5, 0.25), (1.0,), (2.0, 3.0)))
    copy = b.tensor("copy", "f16", (1, 2), shadow="w")
    params: dict[str, tile.Param] = {"n": 1, "k": 2, "steps": 1, "kind": "last", "dtype": "f16", "gblk": 0}
    with b.stage("copy", HERE):
        held, wide = b.alloc("rows", "A", "f32", (4, 2)), b.alloc("wide", "A", "f32", (1, 2))
        half = b.alloc("half", "U", "f16", (1, 2))
        b.load(rows, held, [0, 0], (4, 2))
        b.load(copy, half, [0, 0], (1, 2))
        b.job(tile.ReduceOp, {"dst": wide, "src": half}, params)
        b.store(block.args[1], held, [0, 0], (4, 2))
        b.store(block.args[1], wide, [4, 0], (1, 2))
    (out,) = interpret(module_of(block, ["w", "y"], [1]), [np.array([[1 + 2**-12, 5]]), np.zeros((5, 2))])
    assert out.tolist() == [[0, 0], [0.5, 0.25], [1, 1], [2, 3], [1, 5]]
