"""Models to NIR graphs: an imported graph comes back with its parameters as they are now."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.model import Model

from .load import NirSource
from .nodes import Node, imported_nodes
from .spike_nodes import spike_nodes
from .tree import require

DEFAULT_DT = 1e-4


def to_nir(model: Model, dt: float | None = None) -> object:
    """Return a model as ``nir.NIRGraph``, with its parameters as they are now.

    ``dt``: seconds per time step (default 1e-4). A model that was imported from NIR keeps the constants of its file
    and the ``dt`` it was imported with. Raises H2LearnError for what NIR has no node for.
    """
    return _graph(_nodes(model, dt)[0])


def nir_file(model: Model, dt: float | None = None) -> tuple[bytes, list[str]]:
    """Return the NIR file of a model, and notes on what such a file cannot say. Raises as :func:`to_nir` does."""
    nodes, notes = _nodes(model, dt)
    target = io.BytesIO()
    require("nir").write(target, _graph(nodes))
    return target.getvalue(), notes


def _nodes(model: Model, dt: float | None) -> tuple[list[Node], list[str]]:
    if not isinstance(model, Model):
        raise H2LearnError(f"expected a model, found {type(model).__name__}", hint="h2learn.load_model reads one")
    if dt is not None and not (isinstance(dt, float | int) and math.isfinite(dt) and dt > 0):
        raise H2LearnError(f"expected a positive time step dt in seconds, found {dt!r}")
    if not isinstance(model.source, NirSource):
        return spike_nodes(model, DEFAULT_DT if dt is None else float(dt))
    rule = model.source.plan.options.rule
    if dt is not None and dt != rule.dt:
        raise H2LearnError(
            f"the model was imported with dt {rule.dt:g} and keeps its time constants, found dt {dt:g}",
            hint="leave dt out",
        )
    note = f"read it with dt {rule.dt:g}, discretisation {rule.discretisation}, reset {rule.reset}"
    return imported_nodes(model.source.layers, model.source.plan, model.parameters), [note]


def _graph(nodes: Sequence[Node]) -> object:
    """Return the ``nir.NIRGraph``; all shapes are given, so ``nir`` need not infer them."""
    nir = require("nir")
    made = {node.name: getattr(nir, node.kind)(**node.fields) for node in nodes}
    edges = list(itertools.pairwise(node.name for node in nodes if not node.feedback))
    for before, node in itertools.pairwise(nodes):
        if node.feedback:
            edges += [(before.name, node.name), (node.name, before.name)]
    graph: object = nir.NIRGraph(nodes=made, edges=edges, metadata={}, type_check=False)
    return graph
