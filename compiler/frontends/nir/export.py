"""Models to NIR graphs: an imported graph comes back with its parameters as they are now."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.model import Model

from .graph import Edge
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
    nodes, edges, _ = _nodes(model, dt)
    return _graph(nodes, edges)


def nir_file(model: Model, dt: float | None = None) -> tuple[bytes, list[str]]:
    """Return the NIR file of a model, and notes on what such a file cannot say. Raises as :func:`to_nir` does."""
    nodes, edges, notes = _nodes(model, dt)
    target = io.BytesIO()
    require("nir").write(target, _graph(nodes, edges))
    return target.getvalue(), notes


def _nodes(model: Model, dt: float | None) -> tuple[list[Node], list[Edge], list[str]]:
    """Return the nodes, the edges between those that feed nothing back, and notes."""
    if not isinstance(model, Model):
        raise H2LearnError(f"expected a model, found {type(model).__name__}", hint="h2learn.load_model reads one")
    if dt is not None and not (isinstance(dt, float | int) and math.isfinite(dt) and dt > 0):
        raise H2LearnError(f"expected a positive time step dt in seconds, found {dt!r}")
    if not isinstance(model.source, NirSource):
        made, notes = spike_nodes(model, DEFAULT_DT if dt is None else float(dt))
        return made, list(itertools.pairwise(node.name for node in made if not node.feedback)), notes
    rule = model.source.plan.options.rule
    if dt is not None and dt != rule.dt:
        raise H2LearnError(
            f"the model was imported with dt {rule.dt:g} and keeps its time constants, found dt {dt:g}",
            hint="leave dt out",
        )
    note = f"read it with dt {rule.dt:g}, discretisation {rule.discretisation}, reset {rule.reset}"
    plan = model.source.plan
    return imported_nodes(model.source.layers, plan, model.parameters), list(plan.edges), [note]


def _graph(nodes: Sequence[Node], forward: Sequence[Edge]) -> object:
    """Return the ``nir.NIRGraph``; all shapes are given, so ``nir`` need not infer them."""
    nir = require("nir")
    made = {node.name: getattr(nir, node.kind)(**node.fields) for node in nodes}
    edges = list(forward)
    for before, node in itertools.pairwise(nodes):
        if node.feedback:
            edges += [(before.name, node.name), (node.name, before.name)]
    graph: object = nir.NIRGraph(nodes=made, edges=edges, metadata={}, type_check=False)
    return graph
