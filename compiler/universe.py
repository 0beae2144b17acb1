"""All dialects and passes in one place, for ``h2learn opt`` and (as an entry point) for plain ``xdsl-opt``."""

from __future__ import annotations

from collections.abc import Callable

from xdsl.context import Context
from xdsl.dialects.arith import Arith
from xdsl.dialects.builtin import Builtin
from xdsl.dialects.func import Func
from xdsl.ir import Dialect
from xdsl.universe import Universe

from .pipeline import load_object, passes_by_name

DIALECTS: dict[str, str] = {
    "spike": "h2learn.dialects.spike.ops:Spike",
    "sgrad": "h2learn.dialects.sgrad.ops:Sgrad",
    "lut": "h2learn.dialects.lut:Lut",
    "tile": "h2learn.dialects.tile:Tile",
    "h2": "h2learn.dialects.h2:H2",
}
"""Every dialect: name -> ``module:object``, imported when one of its operations is first met."""


def new_context() -> Context:
    """Return a context that knows the builtin, func and arith dialects and all of ours."""
    context = Context()
    for dialect in (Builtin, Func, Arith):
        context.load_dialect(dialect)
    for name, loader in _dialects().items():
        context.register_dialect(name, loader)
    return context


def _dialects() -> dict[str, Callable[[], Dialect]]:
    def loader(target: str) -> Callable[[], Dialect]:
        def load() -> Dialect:
            found = load_object(target)
            assert isinstance(found, Dialect)
            return found

        return load

    return {name: loader(target) for name, target in DIALECTS.items()}


UNIVERSE = Universe(all_dialects=_dialects(), all_passes=passes_by_name())
