"""What is known of every kind of job: its engine, the roles of its buffers, its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from h2learn.backends.h2learn import isa

from .attributes import Param


@dataclass(frozen=True)
class JobFacts:
    """Engine, buffer roles, which of them are read and written, parameters and coordinates of one kind of job."""

    engine: str
    roles: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    params: tuple[str, ...]
    coords: tuple[str, ...] = ()


_GEOMETRY = ("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "c", "k", "dtype")
_GRADIENT = ("gh", "gw", "py", "px")
_NEURON = (
    *("n", "k", "dtype", "reset", "spike", "surrogate", "width", "height", "drive"),
    *("counted", "most", "bounded", "lowest", "periodic"),
)
_WITHOUT_SYNAPSE = ("plain", "scaled")
_POOL = ("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "k", "kind", "dtype", "gblk", "src", "dst")
_PLANES = ("planes", "frac", "signed")
_NORM = ("steps", "n", "positions", "k", "kind", "dtype", "gblk", "count")
FACTS: dict[str, JobFacts] = {
    "tile.fe_fill": JobFacts("FE", ("lut", "w"), ("w",), ("lut",), ("kh", "kw", "c", "k", "fan", "dtype")),
    "tile.fe_run": JobFacts("FE", ("acc", "s", "lut"), ("acc", "s", "lut"), ("acc",), (*_GEOMETRY, "fan", "shape")),
    "tile.fe_planes": JobFacts(
        "FE", ("acc", "s", "lut"), ("acc", "s", "lut"), ("acc",), (*_GEOMETRY, "fan", "shape", *_PLANES)
    ),
    "tile.be_fwd": JobFacts("BE", ("acc", "x", "w"), ("acc", "x", "w"), ("acc",), _GEOMETRY),
    "tile.be_run": JobFacts(
        "BE",
        ("acc", "g", "w", "m"),
        ("acc", "g", "w", "m"),
        ("acc",),
        (*_GEOMETRY, *_GRADIENT, "gblk", "mode", "masked"),
    ),
    "tile.be_wgt": JobFacts("BE", ("acc", "x", "g"), ("acc", "x", "g"), ("acc",), (*_GEOMETRY, "gblk")),
    "tile.wu_run": JobFacts("WUE", ("acc", "s", "g"), ("acc", "s", "g"), ("acc",), (*_GEOMETRY, "fan", "gblk")),
    "tile.lif": JobFacts(
        "VEC",
        ("acc", "par", "us", "ss", "so", "uo", "mo", "cs"),
        ("acc", "par", "us", "ss", "cs"),
        ("us", "ss", "so", "uo", "mo", "cs"),
        (*_NEURON, "save_u", "save_m", "ublk"),
    ),
    "tile.grad": JobFacts(
        "VEC",
        ("gs", "u", "s", "par", "gc", "go", "gi"),
        ("gs", "u", "s", "par", "gc", "gi"),
        ("gc", "go", "gi"),
        (*_NEURON, "detach", "gblk", "seen", "ublk"),
    ),
    "tile.tune": JobFacts(
        "VEC",
        ("dst", "g", "later", "u", "s", "par"),
        ("dst", "g", "later", "u", "s", "par"),
        ("dst",),
        ("n", "k", "reset", "dtype", "gblk"),
    ),
    "tile.pool": JobFacts("VEC", ("dst", "src", "idx"), ("src",), ("dst", "idx"), (*_POOL, "ylim", "xlim"), ("y", "x")),
    "tile.unpool": JobFacts("VEC", ("dst", "src", "idx"), ("src", "idx"), ("dst",), (*_POOL, *_GRADIENT)),
    "tile.rng": JobFacts(
        "VEC",
        ("dst", "src", "scal"),
        ("src", "scal"),
        ("dst",),
        ("n", "positions", "k", "stream"),
        ("pos", "neu", "tick"),
    ),
    "tile.drop": JobFacts(
        "VEC",
        ("dst", "a", "scal"),
        ("a", "scal"),
        ("dst",),
        ("n", "positions", "k", "stream", "share", "factor", "dtype", "gblk", "a", "dst"),
        ("pos", "neu", "tick"),
    ),
    "tile.reduce": JobFacts(
        "VEC", ("dst", "src"), ("src", "dst"), ("dst",), ("n", "k", "steps", "kind", "dtype", "gblk")
    ),
    "tile.spread": JobFacts("VEC", ("dst", "src", "x"), ("src", "x"), ("dst",), ("n", "k", "steps", "dtype")),
    "tile.map": JobFacts(
        "VEC", ("dst", "a", "b"), ("a", "b"), ("dst",), ("n", "k", "kind", "dtype", "gblk", "a", "b", "dst")
    ),
    "tile.pack": JobFacts("VEC", ("dst", "src"), ("src",), ("dst",), ("n", "k", "dtype", *_PLANES)),
    "tile.stat": JobFacts(
        "VEC",
        ("dst", "x", "g", "par", "scal"),
        ("dst", "x", "g", "par", "scal"),
        ("dst",),
        _NORM,
        ("pos",),
    ),
    "tile.fold": JobFacts(
        "VEC",
        ("dst", "src", "run", "scal"),
        ("src", "run", "scal"),
        ("dst", "run"),
        ("k", "kind", "count", "repeats", "eps", "momentum"),
    ),
    "tile.norm": JobFacts(
        "VEC",
        ("dst", "x", "g", "par", "scal"),
        ("x", "g", "par", "scal"),
        ("dst",),
        _NORM,
        ("pos",),
    ),
    "tile.loss": JobFacts(
        "VEC",
        ("loss", "grad", "logits", "label", "scal"),
        ("loss", "logits", "label", "scal"),
        ("loss", "grad"),
        ("n", "k", "kind", "hit", "miss", "share", "scale"),
        ("pos",),
    ),
    "tile.opt": JobFacts(
        "VEC",
        ("p", "g", "mom", "sq", "w", "scal"),
        ("p", "g", "mom", "sq", "scal"),
        ("p", "mom", "sq", "w"),
        ("n", "kind", "dtype", "scale", "decay", "momentum", "rate1", "rate2", "eps"),
    ),
}


def roles_off(name: str, p: dict[str, Param]) -> frozenset[str]:
    """Return the roles that the parameters of a job switch off."""
    unused: set[str] = set()
    if name == "tile.lif":
        unused |= {"uo"} if p["save_u"] == "no" else set()
        unused |= {"mo"} if p["save_m"] == "no" else set()
        unused |= {"ss", "so"} if p["spike"] == "never" else {"ss"} if p["counted"] == "yes" else set()
        unused |= {"cs"} if p["drive"] in _WITHOUT_SYNAPSE else set()
    elif name == "tile.grad":
        unused |= {"u", "s"} if p["spike"] == "never" else {"s"} if p["counted"] == "yes" else set()
        unused |= {"gi"} if p["drive"] in _WITHOUT_SYNAPSE else set()
    elif name == "tile.be_run":
        unused |= {"m"} if p["masked"] == "no" else set()
    elif name in ("tile.pool", "tile.unpool"):
        unused |= {"idx"} if p["kind"] != "max" else set()
    elif name == "tile.map":
        unused |= set() if p["kind"] in isa.BINARY_MAPS else {"b"}
    elif name == "tile.stat":
        unused |= set() if p["kind"] == "product" else {"g"}
    elif name == "tile.norm":
        unused |= set() if p["kind"] == "backward" else {"g", "scal"}
    elif name == "tile.opt":
        adam = p["kind"] in ("adam", "adamw")
        unused |= {"mom"} if p["momentum"] == 0 and not adam else set()
        unused |= set() if adam else {"sq"}
        unused |= {"w"} if p["dtype"] == "f32" else set()
    return frozenset(unused)
