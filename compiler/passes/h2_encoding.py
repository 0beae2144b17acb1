"""How a ``tile`` job becomes an instruction: mnemonic, descriptor fields, extra fields, as one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoding:
    """``desc`` names the descriptor kind; ``fields`` maps its fields to parameters of the job (same name: no entry)."""

    mnemonic: str
    desc: str
    fields: tuple[tuple[str, str], ...]
    extra: tuple[str, ...] = ()
    coords: tuple[str, ...] = ()


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


_GEOMETRY = _same("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "c", "k", "dtype")
_GRADIENT = _same("gh", "gw", "py", "px")
_NEURON = (
    *_same("n", "k", "dtype", "reset", "spike", "surrogate", "width", "height", "drive"),
    *_same("counted", "most", "bounded", "lowest", "periodic"),
)
_POOL = _same("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "k", "kind", "dtype", "gblk", "src", "dst")
_LOSS = _same("n", "k", "kind", "hit", "miss", "share")
_PLANES = _same("planes", "frac", "signed")
_NORM = _same("steps", "n", "positions", "k", "kind", "dtype", "gblk", "count")

ENCODINGS: dict[str, Encoding] = {
    "tile.fe_fill": Encoding("fe.fill", "conv", _same("kh", "kw", "c", "k", "fan", "dtype")),
    "tile.fe_run": Encoding("fe.run", "conv", _GEOMETRY + _same("fan"), ("shape",)),
    "tile.fe_planes": Encoding("fe.run", "conv", _GEOMETRY + _same("fan") + _PLANES, ("shape",)),
    "tile.be_fwd": Encoding("be.fwd", "conv", _GEOMETRY),
    "tile.be_run": Encoding("be.run", "conv", _GEOMETRY + _GRADIENT + _same("gblk"), ("mode", "masked")),
    "tile.be_wgt": Encoding("be.wgt", "conv", _GEOMETRY + _same("gblk")),
    "tile.wu_run": Encoding("wu.run", "conv", _GEOMETRY + _same("fan", "gblk")),
    "tile.lif": Encoding("v.lif", "neuron", _NEURON + _same("save_u", "save_m", "ublk")),
    "tile.grad": Encoding("v.grad", "neuron", _NEURON + _same("detach", "gblk", "seen", "ublk")),
    "tile.tune": Encoding("v.tune", "neuron", _same("n", "k", "reset", "dtype", "gblk")),
    "tile.pool": Encoding("v.pool", "pool", _POOL + _same("ylim", "xlim"), coords=("y", "x")),
    "tile.unpool": Encoding("v.unpool", "pool", _POOL + _GRADIENT),
    "tile.rng": Encoding(
        "v.rng", "vec", (*_same("n", "k", "stream"), ("steps", "positions")), coords=("pos", "neu", "tick")
    ),
    "tile.drop": Encoding(
        "v.drop",
        "vec",
        (
            *_same("n", "k", "stream", "dtype", "gblk", "a", "dst"),
            ("steps", "positions"),
            ("p0", "share"),
            ("share", "factor"),
        ),
        coords=("pos", "neu", "tick"),
    ),
    "tile.reduce": Encoding("v.reduce", "vec", _same("n", "k", "steps", "kind", "dtype", "gblk")),
    "tile.spread": Encoding("v.spread", "vec", _same("n", "k", "steps", "dtype")),
    "tile.map": Encoding("v.map", "vec", _same("n", "k", "kind", "dtype", "gblk", "a", "b", "dst")),
    "tile.pack": Encoding("v.pack", "vec", _same("n", "k", "dtype") + _PLANES),
    "tile.stat": Encoding("v.stat", "norm", _NORM, coords=("pos",)),
    "tile.fold": Encoding("v.fold", "norm", _same("k", "kind", "count", "repeats", "eps", "momentum")),
    "tile.norm": Encoding("v.norm", "norm", _NORM, coords=("pos",)),
    "tile.loss": Encoding("v.loss", "vec", (*_LOSS, ("p0", "scale")), coords=("pos",)),
    "tile.opt": Encoding(
        "v.opt", "opt", _same("n", "kind", "dtype", "scale", "decay", "momentum", "rate1", "rate2", "eps")
    ),
}
