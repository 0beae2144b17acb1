"""The compiler's phases as data: which passes exist, in which order they run, and how their options are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from xdsl.passes import ModulePass
from xdsl.utils.arg_spec import ArgSpec, parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError

from h2learn.backends.h2learn.errors import H2LearnError

from .diagnostics import as_user_error


@dataclass(frozen=True)
class Phase:
    """A named stretch of the pipeline: ``passes`` in order; ``level`` is what the program is written in afterwards."""

    name: str
    level: str
    passes: tuple[str, ...]


PASSES: dict[str, str] = {
    "h2l-hoist-static-current": "h2learn.compiler.passes.hoist_static_current:HoistStaticCurrentPass",
    "h2l-train": "h2learn.compiler.passes.train:TrainPass",
    "h2l-spike-to-lut": "h2learn.compiler.passes.spike_to_lut:SpikeToLutPass",
    "h2l-lut-to-tile": "h2learn.compiler.passes.lut_to_tile:LutToTilePass",
    "h2l-share-stages": "h2learn.compiler.passes.share_stages:ShareStagesPass",
    "h2l-lay-out-tensors": "h2learn.compiler.passes.lay_out_tensors:LayOutTensorsPass",
    "h2l-place-buffers": "h2learn.compiler.passes.place_buffers:PlaceBuffersPass",
    "h2l-insert-tokens": "h2learn.compiler.passes.insert_tokens:InsertTokensPass",
    "h2l-tile-to-h2": "h2learn.compiler.passes.tile_to_h2:TileToH2Pass",
}
"""Every pass: name -> ``module:class``, imported when it is first used."""

READS: dict[str, tuple[str, ...]] = {
    "h2l-hoist-static-current": ("spike",),
    "h2l-train": ("spike", "sgrad"),
    "h2l-spike-to-lut": ("spike", "sgrad"),
    "h2l-lut-to-tile": ("lut",),
    "h2l-share-stages": ("tile",),
    "h2l-lay-out-tensors": ("tile",),
    "h2l-place-buffers": ("tile",),
    "h2l-insert-tokens": ("tile",),
    "h2l-tile-to-h2": ("tile",),
}
"""Pass -> the dialects of the programs that it takes, beside functions."""

PHASES: tuple[Phase, ...] = (
    Phase("import", "spike", ()),
    Phase("train", "spike + sgrad", ("h2l-hoist-static-current", "h2l-train")),
    Phase("engines", "lut", ("h2l-spike-to-lut",)),
    Phase(
        "tile",
        "tile",
        (
            "h2l-lut-to-tile",
            "h2l-share-stages",
            "h2l-lay-out-tensors",
            "h2l-place-buffers",
            "h2l-insert-tokens",
        ),
    ),
    Phase("h2", "h2", ("h2l-tile-to-h2",)),
    Phase("emit", "binary", ()),
)
"""The road from a model to a binary; ``h2l-train`` is left out of an inference program."""


def phase_names() -> tuple[str, ...]:
    """Return the names of the phases in order."""
    return tuple(phase.name for phase in PHASES)


def load_pass(name: str) -> type[ModulePass]:
    """Return the class of the pass ``name``; raises H2LearnError for an unknown one."""
    target = PASSES.get(name)
    if target is None:
        raise H2LearnError(f"there is no pass {name!r}", hint=f"known passes: {', '.join(sorted(PASSES))}")
    found = load_object(target)
    assert isinstance(found, type) and issubclass(found, ModulePass)
    return found


def load_object(target: str) -> object:
    """Return what ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def passes_by_name() -> dict[str, Callable[[], type[ModulePass]]]:
    """Return name -> loader for every pass, as xDSL's tools want them."""

    def loader(name: str) -> Callable[[], type[ModulePass]]:
        return lambda: load_pass(name)

    return {name: loader(name) for name in PASSES}


def parse_passes(text: str) -> tuple[ModulePass, ...]:
    """Build the passes of a pipeline text such as ``a,b{option=1}``; raises H2LearnError when it cannot be used."""
    try:
        specs = tuple(parse_pipeline(text))
    except ArgSpecParseError as error:
        raise as_user_error(error) or error from error
    return tuple(build_pass(spec) for spec in specs)


def build_pass(spec: ArgSpec) -> ModulePass:
    """Build one pass from its name and options; raises H2LearnError that names a wrong option."""
    kind = load_pass(spec.name)
    try:
        return kind.from_spec(spec)
    except ValueError as error:
        raise H2LearnError(f"pass {spec.name}: {error}") from error


def pipeline_text(passes: Sequence[ModulePass]) -> str:
    """Return the text that ``-p`` reads back as the same passes."""
    return ",".join(str(one.spec()) for one in passes)
