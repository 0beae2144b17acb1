"""Writes the generated pages: ``python docs/generate.py``; ``--check`` only compares, and fails on a difference.

The walkthrough follows one spike tensor and one weight gradient of a two-layer network through every level.
"""

from __future__ import annotations

import difflib
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from xdsl.dialects import builtin

from h2learn.backends.h2learn.assembler import format_instruction
from h2learn.backends.h2learn.encoder import decode, encode
from h2learn.backends.h2learn.manual import page as isa_manual
from h2learn.compiler import checks
from h2learn.compiler.driver import Recipe, compile_to, emit_program
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.compiler.manager import module_text
from h2learn.compiler.model import Model
from h2learn.program import Program, Session

HERE = Path(__file__).parent

NETWORK = """network walkthrough
input image: 1 x 3 x 3
time steps: 2
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 2 channels, kernel 2 x 2
lif n1
flatten
linear f1: 2 features
lif n2
readout rate
train: loss mse_rate, optimizer sgd(lr 0.5), surrogate rectangular(half_width 1.0, height 1.0), method bptt
init: normal gain 2.0 seed 1
"""
IMAGE = np.array([[0.5, 1.0, 0.25], [0.0, 0.75, 1.0], [1.0, 0.5, 0.0]], dtype=np.float32).reshape(1, 1, 3, 3)
LABEL = np.array([1], dtype=np.int32)
SCALARS = np.frombuffer(struct.pack("<fIIIQQ", 0.5, 1, 0, 0, 0, 0), dtype=np.int32)
FOLLOWED = "f1.weight"
"""The parameter whose gradient the page follows."""

DECISIONS = {
    "import": "Whole tensors, time is the first dimension. Nothing is said about gradients, engines or memory.",
    "train": "Differentiation: the loss, every adjoint as an operation of its own (`sgrad`), the update. The direct"
    " encoding has moved below the first convolution, whose current is therefore computed once for all time steps, and"
    " whose gradient is summed over time (`sgrad.time_sum`) before its weight gradient.",
    "engines": "Engines and formats: the convolution of real inputs goes to the multipliers of BE (`be_conv`), that of"
    " spikes to the look-up tables of FE (`fe_conv`), its weight gradient to WUE (`wu`). Spikes and masks are packed"
    " bits, gradients a bitmap with values. `fan_in` and `reduce_block` fix the order of every sum; from here on"
    " all levels agree bit for bit. Flattening is gone: the linear layer is a kernel as large as its input.",
    "tile": "Loops over tiles, buffers in named memories at fixed addresses with one or two slots, copies from and to"
    " DRAM, and tokens between engines. Shown are the stages that make the spikes and the followed gradient.",
    "h2": "One operation per machine instruction: address registers with strides, descriptors, hardware loops,"
    " semaphores. Shown are the instructions of the look-up engine and of the weight update engine.",
}


def main(arguments: Sequence[str]) -> int:
    """Write or compare all pages; return the exit code."""
    stale = [name for name, page in PAGES.items() if not _settle(HERE / name, page(), "--check" in arguments)]
    for name in stale:
        print(f"docs/{name} is not what docs/generate.py writes", file=sys.stderr)
    return 1 if stale else 0


def walkthrough() -> str:
    """Return the page that follows a training step of a two-layer network through every level."""
    model = parse_snn(NETWORK, "walkthrough.snn")
    recipe = Recipe(train=model.train)
    modules = {phase: compile_to(model, recipe, phase) for phase in DECISIONS}
    program = Program(emit_program(model, modules["h2"], recipe), model.name)
    sections = [
        "# A training step at every level",
        "Written by `python docs/generate.py`; CI compares it. Two layers, one sample, two time steps. Each"
        f" level is shown with the decision that the level above lacks. At the end, the spikes of `n1` and the gradient"
        f" of `{FOLLOWED}` in the simulator's memory are compared with every level.",
        "## The model file",
        _code(NETWORK),
        "Get every level of this file with `h2learn compile walkthrough.snn --train bptt --dump-ir-dir ir`.",
    ]
    for phase, excerpt in EXCERPTS.items():
        sections += [f"## {TITLES[phase]}", DECISIONS[phase], _code(excerpt(modules[phase]), "mlir")]
    sections += ["## The bytes", _bytes_text(program)]
    sections += ["## The simulator's memory after the step", *_memory(model, modules, program)]
    return "\n\n".join(sections) + "\n"


def _whole(module: builtin.ModuleOp) -> str:
    """The program without its attributes and locations."""
    shown = module.clone()
    shown.attributes.clear()
    return module_text(shown, locations=False)


def _stages(module: builtin.ModuleOp) -> str:
    """The tile stages with a job on FE or WUE."""
    found, keep = [], list[str]()
    for line in module_text(module, locations=False).splitlines():
        if line.startswith("    tile.stage"):
            keep = []
        keep.append(line[4:])
        if line == "    }":
            if any(job in "".join(keep) for job in ("tile.fe_run", "tile.wu")):
                found += keep
            keep = []
    return "\n".join(found)


def _instructions(module: builtin.ModuleOp) -> str:
    """The h2 operations around fe.fill, fe.run and wu.run."""
    lines = [line.strip() for line in module_text(module, locations=False).splitlines()]
    wanted = [at for at, line in enumerate(lines) if line.startswith(("h2.fe.", "h2.wu."))]
    shown = sorted({near for at in wanted for near in range(at - 4, at + 3)})
    text: list[str] = []
    for at, before in zip(shown, [shown[0] - 1, *shown], strict=False):
        text += [*(["..."] if at != before + 1 else []), lines[at]]
    return "\n".join(text)


def _bytes_text(program: Program) -> str:
    words = [item for item in program.loaded.code if item.mnemonic in ("fe.fill", "fe.run", "wu.run")]
    rows = []
    for item in words:
        word = encode(item.mnemonic, item.fields)
        assert decode(word) == item
        rows.append(f"{word.hex(' ')}   {format_instruction(item.mnemonic, item.fields)}")
    head = (
        f"The program has {len(program.loaded.code)} words of 16 bytes. docs/isa.md has their layout; these are the"
        " look-ups and the weight update:"
    )
    return f"{head}\n\n{_code(chr(10).join(rows))}"


def _memory(model: Model, modules: dict[str, builtin.ModuleOp], program: Program) -> list[str]:
    with program.session() as session:
        result = session.run({"image": IMAGE, "label": LABEL})
        spikes = _spikes_of_n1(model)
        address, raw = _find_bits(session, spikes)
        gradient = np.array(result.gradients[FOLLOWED])
        assert result.loss is not None
        loss = result.loss
    levels = {phase: _gradient_at(modules[phase], program) for phase in DECISIONS if phase != "import"}
    rows = [f"{phase:<8} {_numbers(value.reshape(-1))}" for phase, value in levels.items()]
    rows.append(f"{'machine':<8} {_numbers(_device_order(model, gradient).reshape(-1))}")
    steps = [f"t={t}: {' '.join(str(int(bit)) for bit in spikes[t].reshape(-1))}" for t in range(len(spikes))]
    return [
        f"The loss is {loss:.6g}. The spikes of `n1`, `[T, N, H, W, C]` = {list(spikes.shape)}, at the spike level:",
        _code("\n".join(steps)),
        f"The same in DRAM at {address:#x}, one byte for the channels of each position (channel 0 is bit 0):",
        _code(raw.tobytes().hex(" ")),
        f"The gradient of `{FOLLOWED}` in device order `[kh*kw, C, K]`, from the interpreter of every level and the"
        " machine's memory:",
        _code("\n".join(rows)),
        "`train` may round differently (1e-5 of the largest value); `engines`, `tile`, `h2` and the machine agree bit"
        f" for bit: {_agreement(levels, _device_order(model, gradient))}.",
    ]


def _spikes_of_n1(model: Model) -> np.ndarray:
    """Run the network up to ``n1`` at the spike level."""
    head = NETWORK.partition("flatten")[0]
    parameters = {name: value for name, value in model.parameters.items() if name.startswith("c1.")}
    front = parse_snn(head, "walkthrough.snn").with_parameters(parameters)
    arguments = {("input", "image"): IMAGE.transpose(0, 2, 3, 1)}
    arguments |= {("parameter", name): _in_order(front, name, value) for name, value in parameters.items()}
    return next(iter(checks.run_level(front.module, arguments).values())).astype(np.bool_)


def _gradient_at(module: builtin.ModuleOp, program: Program) -> np.ndarray:
    loaded = program.parameters
    arguments: dict[checks.Key, np.ndarray] = {("scalars", "scalars"): SCALARS}
    for entry in checks.get_io(module):
        key = (entry.role, entry.name)
        if entry.role == "parameter":
            arguments[key] = entry.to_device(loaded[entry.name])
        if entry.role == "input":
            arguments[key] = entry.to_device(IMAGE)
        if entry.role == "label":
            arguments[key] = LABEL
    return checks.run_level(module, arguments)["gradient", FOLLOWED].astype(np.float32)


def _in_order(model: Model, name: str, value: np.ndarray) -> np.ndarray:
    entry = next(entry for entry in checks.get_io(model.module) if entry.name == name)
    return entry.to_device(value)


def _device_order(model: Model, value: np.ndarray) -> np.ndarray:
    return _in_order(model, FOLLOWED, value)


def _find_bits(session: Session, spikes: np.ndarray) -> tuple[int, np.ndarray]:
    """Return address and bytes of the tensor that holds exactly these spikes in the program's DRAM."""
    packed = np.packbits(spikes, axis=-1, bitorder="little").reshape(-1)
    memories = session.device.memories
    for symbol in session.program.loaded.symbols.values():
        start = symbol.address - memories.dram_base
        raw = memories.arrays["DRAM"][start : start + packed.size]
        if symbol.size == packed.size and np.array_equal(raw, packed):
            return symbol.address, raw.copy()
    raise SystemExit("the spikes of n1 are nowhere in the simulator's memory")


def _agreement(levels: dict[str, np.ndarray], machine: np.ndarray) -> str:
    exact = [np.array_equal(levels[phase].reshape(-1), machine.reshape(-1)) for phase in ("engines", "tile", "h2")]
    if not all(exact):
        raise SystemExit("the levels below spike do not agree with the machine")
    return "checked while this page was written"


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:7.4f}" for value in values)


def _code(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _settle(path: Path, text: str, check: bool) -> bool:
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    if found == text:
        return True
    if not check:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
        return True
    changes = difflib.unified_diff(found.splitlines(), text.splitlines(), "tree", "generated", lineterm="", n=0)
    print("\n".join(list(changes)[:20]), file=sys.stderr)
    return False


TITLES = {
    "import": "`spike`: the model",
    "train": "`spike` and `sgrad`: the training graph",
    "engines": "`lut`: engines and formats",
    "tile": "`tile`: loops, buffers, copies",
    "h2": "`h2`: instructions",
}
EXCERPTS: dict[str, Callable[[builtin.ModuleOp], str]] = {
    "import": _whole,
    "train": _whole,
    "engines": _whole,
    "tile": _stages,
    "h2": _instructions,
}
PAGES: dict[str, Callable[[], str]] = {"isa.md": isa_manual, "walkthrough.md": walkthrough}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
