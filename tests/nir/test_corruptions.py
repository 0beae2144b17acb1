"""A file with one damaged field is imported or refused with a sentence that names node and field; never a crash."""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

import h2learn

from . import graphs

h5py = pytest.importorskip("h5py")

CASES = int(os.environ.get("H2LEARN_MUTATIONS", "300"))
"""The whole contract is 2,000."""


def network() -> Any:
    conv = nir.Conv2d(
        (6, 6), np.full((3, 2, 3, 3), 0.2, np.float32), (1, 1), (1, 1), (1, 1), 1, np.zeros(3, np.float32)
    )
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    start, end = graphs.ports((2, 6, 6), (4,))
    inner = graphs.chain(
        graphs.ports((3, 6, 6), (3, 6, 6))[0], ("cell", graphs.lif((3, 6, 6))), graphs.ports((1,), (3, 6, 6))[1]
    )
    (entry, first), (exit_, last) = graphs.ports((8,), (8,))
    nodes = {entry: first, "count": nir.IF(np.full(8, 1e4), np.ones(8), np.zeros(8)), exit_: last}
    edges = [(entry, "count"), ("count", "back"), ("back", "count"), ("count", exit_)]
    loop = nir.NIRGraph({**nodes, "back": graphs.affine(2, 8, 8)}, edges, type_check=False)
    return graphs.chain(
        start,
        ("conv", conv),
        ("block", inner),
        ("pool", pool),
        ("flat", nir.Flatten(np.array([3, 3, 3]), 0, -1)),
        ("dense", graphs.affine(1, 8, 27)),
        ("loop", loop),
        ("late", nir.Delay(np.full(8, 2e-4))),
        ("scale", nir.Scale(np.full(8, 0.5))),
        ("linear", nir.Linear(np.ones((4, 8), np.float32))),
        ("integrate", nir.LI(np.full(4, 1e-3), np.ones(4), np.zeros(4))),
        end,
    )


NUMBERS: tuple[Callable[[np.ndarray, random.Random], object], ...] = (
    lambda v, r: v * 0,
    lambda v, r: v * -1,
    lambda v, r: np.full(v.shape, np.nan),
    lambda v, r: np.where(np.arange(v.size).reshape(v.shape) == r.randrange(v.size), np.inf, v),
    lambda v, r: v * 1e30,
    lambda v, r: np.full(v.shape, 2**31),
    lambda v, r: np.full(v.shape, -(2**63)),
    lambda v, r: v + 1,
    lambda v, r: v.ravel()[: r.randrange(v.size + 1)],
    lambda v, r: v[None],
    lambda v, r: np.repeat(v[None] if v.ndim == 0 else v, 2, axis=0),
    lambda v, r: np.swapaxes(v, 0, -1) if v.ndim > 1 else v.reshape(-1, 1),
    lambda v, r: v.astype(np.complex64),
    lambda v, r: v.astype(np.float16),
    lambda v, r: v.astype(bool),
    lambda v, r: "text",
    lambda v, r: b"\xff\xfe",
    lambda v, r: h5py.Empty("f"),
    lambda v, r: np.zeros(0),
)
WORDS: tuple[Callable[[Any, random.Random], object], ...] = (
    lambda v, r: "",
    lambda v, r: "Banana",
    lambda v, r: r.choice(
        ["LIF", "LI", "I", "IF", "Affine", "Conv2d", "Conv1d", "NIRGraph", "Input", "Output", "Flatten"]
    ),
    lambda v, r: r.choice(["CubaLIF", "Delay", "Threshold", "Scale", "SumPool2d", "AvgPool2d", "Linear"]),
    lambda v, r: b"\xff",
    lambda v, r: 7,
    lambda v, r: np.zeros((2, 2)),
)


def corrupt(path: Path, seed: int) -> str:
    """Damage one field of the file, and return its name."""
    r = random.Random(seed)
    with h5py.File(path, "r+") as file:
        fields: list[str] = []
        file["node"].visititems(lambda name, item: fields.append(name) if isinstance(item, h5py.Dataset) else None)
        field = r.choice(fields)
        group, old = file["node"], file["node"][field][()]
        del group[field]
        kind = r.random()
        if kind < 0.1:
            return field
        if kind < 0.15:
            group.create_group(field)
            return field
        if field.endswith("edges"):
            group.create_dataset(field, data=_edges(old, r), dtype=h5py.string_dtype())
            return field
        changes = WORDS if isinstance(old, bytes) else NUMBERS
        with np.errstate(all="ignore"):
            value = r.choice(changes)(old if isinstance(old, bytes) else np.asarray(old), r)
        if isinstance(value, str | bytes):
            group.create_dataset(field, data=value, dtype=h5py.string_dtype())
        else:
            group.create_dataset(field, data=value)
    return field


def _edges(old: np.ndarray, r: random.Random) -> np.ndarray:
    edges = [tuple(end.decode() for end in edge) for edge in old.tolist()]
    names = sorted({name for edge in edges for name in edge}) + ["nobody", ""]
    place = r.randrange(len(edges))
    changed = r.choice(
        [
            [*edges[:place], *edges[place + 1 :]],
            [*edges, edges[place]],
            [*edges, (r.choice(names), r.choice(names))],
            [*edges[:place], (r.choice(names), edges[place][1]), *edges[place + 1 :]],
            [*edges[:place], (edges[place][0], r.choice(names)), *edges[place + 1 :]],
        ]
    )
    return np.array(changed, dtype=object)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    graphs.write(path, network())
    assert h2learn.load_model(path).parameters
    return path


def test_one_damaged_field(intact: Path, tmp_path: Path) -> None:
    refused = 0
    for seed in range(CASES):
        path = tmp_path / f"{seed}.nir"
        shutil.copy(intact, path)
        field = corrupt(path, seed)
        try:
            model = h2learn.load_model(path, time_steps=2)
        except h2learn.H2LearnError as error:
            refused += 1
            text = error.render()
            assert len(text.splitlines()) < 30 and str(path) in text
            named = re.search(r"node [\w.]+ \([\w?]*\), field \w+: \w+|expected one (In|Out)put node|in /node/\w", text)
            assert named, f"seed {seed}, {field}: {text}"
        else:
            assert all(np.isfinite(value).all() for value in model.parameters.values())
            model.with_batch(2).module.verify()
        path.unlink()
    assert CASES // 2 < refused < CASES
