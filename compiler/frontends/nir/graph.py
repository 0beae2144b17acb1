"""From a NIR graph to its nodes in order: nested graphs are opened, and loops and loose ends are refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from h2learn.backends.h2learn.errors import H2LearnError

from .record import Record
from .tree import MAX_DEPTH, Tree

GRAPH, INPUT, OUTPUT, INNER = "NIRGraph", "Input", "Output", "Identity"

Edge = tuple[str, str]


class Problems:
    """Collects refusals, so that all of them are reported at once."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.errors: list[H2LearnError] = []

    def add(self, error: H2LearnError) -> None:
        """Remember one refusal."""
        if error.message not in [e.message for e in self.errors]:
            self.errors.append(error)

    def check(self) -> None:
        """Raise H2LearnError that lists all refusals, if there are any."""
        if not self.errors:
            return
        if len(self.errors) == 1:
            raise self.errors[0]
        lines = [f"  {error.message}" + (f" ({error.hint})" if error.hint else "") for error in self.errors]
        raise H2LearnError(
            f"{len(self.errors)} things in the graph cannot be imported", location=self.file, excerpt="\n".join(lines)
        )


def read_graph(tree: Tree, file: str, problems: Problems) -> tuple[list[Record], list[Edge]]:
    """Return all nodes and edges of a graph with nested graphs opened: their nodes are named ``outer.inner``."""
    records: dict[str, Record] = {}
    edges: list[Edge] = []
    _open(Record("graph", GRAPH, tree, file), "", records, edges, problems, 0)
    inner = {name for name, record in records.items() if record.kind == INNER}
    return [r for r in records.values() if r.kind != INNER], _without(edges, inner)


def feedback_of(edges: Sequence[Edge], weights: Collection[str]) -> dict[str, str]:
    """Return for each node that a weight node leads back to, with nothing else between them, that weight node."""
    found: dict[str, str] = {}
    for node in weights:
        before, behind = [a for a, b in edges if b == node], [b for a, b in edges if a == node]
        if before == behind and len(before) == 1 and before[0] not in found:
            found[before[0]] = node
    return found


def in_order(records: Sequence[Record], edges: Sequence[Edge], file: str, problems: Problems) -> list[Record]:
    """Return the nodes, each behind what leads to it; loops and loose ends are added to ``problems``."""
    by_name = {record.name: record for record in records}
    inputs = [r for r in records if r.kind == INPUT]
    outputs = [r for r in records if r.kind == OUTPUT]
    if len(inputs) != 1:
        names = f": {', '.join(r.name for r in inputs)}" if inputs else ""
        problems.add(H2LearnError(f"expected one Input node, found {len(inputs)}{names}", location=file))
    if not outputs:
        problems.add(H2LearnError("expected an Output node, found none", location=file))
    for a, b in edges:
        if by_name[b].kind == INPUT or by_name[a].kind == OUTPUT:
            problems.add(by_name[b].error(f"an edge from {a} that leads into an input or out of an output", "edges"))
    for a, b in _closing_edges(by_name, edges):
        problems.add(by_name[b].error(f"the edge from {a} closes a loop: recurrence is not supported yet", "edges"))
    reached = _reached([r.name for r in inputs], edges)
    leading = _reached([r.name for r in outputs], [(b, a) for a, b in edges])
    for record in records:
        if record.name not in reached:
            problems.add(record.error("no edge leads to it", "edges"))
        elif record.name not in leading:
            problems.add(record.error("no edge leads on to an output", "edges"))
    return [by_name[name] for name in _sorted(by_name, edges)]


def _reached(starts: Sequence[str], edges: Sequence[Edge]) -> set[str]:
    found, waiting = set(starts), list(starts)
    while waiting:
        name = waiting.pop()
        new = {b for a, b in edges if a == name} - found
        found |= new
        waiting += new
    return found


def _sorted(names: Mapping[str, Record], edges: Sequence[Edge]) -> list[str]:
    """Return the names of a graph without loops, each behind those with an edge to it."""
    missing = {name: sum(b == name for _, b in edges) for name in names}
    ready = [name for name, count in missing.items() if not count]
    found = []
    while ready:
        name = ready.pop(0)
        found.append(name)
        for target in [b for a, b in edges if a == name]:
            missing[target] -= 1
            if not missing[target]:
                ready.append(target)
    return found


def _open(
    graph: Record, prefix: str, records: dict[str, Record], edges: list[Edge], problems: Problems, depth: int
) -> None:
    nodes = graph.fields.get("nodes")
    if not isinstance(nodes, Mapping) or not nodes:
        problems.add(graph.error("expected nodes, found none", "nodes"))
        return
    nested: set[str] = set()
    for name, fields in nodes.items():
        full = prefix + name
        if not isinstance(fields, Mapping) or not isinstance(kind := fields.get("type"), str):
            problems.add(Record(full, "?", {}, graph.file).error("expected the name of a node type", "type"))
            continue
        record = Record(full, kind, fields, graph.file)
        if kind == GRAPH and depth < MAX_DEPTH:
            nested.add(full)
            _open(record, f"{full}.", records, edges, problems, depth + 1)
            continue
        records[full] = Record(full, INNER, fields, graph.file) if prefix and kind in (INPUT, OUTPUT) else record
    edges.extend(_edges(graph, prefix, records, nested, problems))


def _edges(
    graph: Record, prefix: str, records: Mapping[str, Record], nested: set[str], problems: Problems
) -> list[Edge]:
    value = graph.fields.get("edges")
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] != 2 or value.dtype.kind != "U":
        problems.add(graph.error("expected pairs of node names", "edges"))
        return []
    found: list[Edge] = []
    for source, target in value.tolist():
        ends = (
            _port(prefix + source, OUTPUT, records, nested),
            _port(prefix + target, INPUT, records, nested),
        )
        for name, end in zip((source, target), ends, strict=True):
            if end is None:
                problems.add(graph.error(f"expected the name of a node, found {name!r}", "edges"))
        start, stop = ends
        if start is None or stop is None:
            continue
        if (start, stop) in found:
            problems.add(graph.error(f"expected every edge once, found {source} -> {target} twice", "edges"))
        else:
            found.append((start, stop))
    return found


def _port(name: str, side: str, records: Mapping[str, Record], nested: set[str]) -> str | None:
    """Return the node that an edge means: for a nested graph its input or output."""
    if name in records:
        return name
    if name not in nested:
        return None
    inside = [
        key
        for key, record in records.items()
        if record.kind == INNER and record.fields.get("type") == side and key.rpartition(".")[0] == name
    ]
    return inside[0] if len(inside) == 1 else None


def _without(edges: Sequence[Edge], inner: set[str]) -> list[Edge]:
    """Return the edges with the inputs and outputs of nested graphs taken out."""
    found = list(edges)
    for name in sorted(inner):
        before = [a for a, b in found if b == name]
        after = [b for a, b in found if a == name]
        found = [edge for edge in found if name not in edge] + [(a, b) for a in before for b in after]
    return found


def _closing_edges(records: Mapping[str, Record], edges: Sequence[Edge]) -> list[Edge]:
    """Return the edges that lead back to a node on the way to them."""
    following: dict[str, list[str]] = {name: [] for name in records}
    for a, b in edges:
        following[a].append(b)
    state: dict[str, int] = {}
    found: list[Edge] = []
    for root in records:
        stack = [(root, iter(following[root]))] if root not in state else []
        state.setdefault(root, 1)
        while stack:
            name, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                state[name] = 2
                stack.pop()
            elif state.get(target) == 1:
                found.append((name, target))
            elif target not in state:
                state[target] = 1
                stack.append((target, iter(following[target])))
    return found
