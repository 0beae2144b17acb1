"""THE instruction table: every fact about the encoding stands here once.

Encoder, decoder, assembler, disassembler, the ``h2`` op classes, the simulator's dispatch, the ISA manual and the
random-program generator are all derived from :data:`INSTRUCTIONS`, :data:`DESCRIPTORS` and :data:`MEMORIES`.
The exact arithmetic of each instruction is specified in ``docs/semantics.md``; ``action`` is its one-line summary.

An instruction is one 128-bit little-endian word: the opcode in bits 0-7, then the operand fields in the order of the
row, packed without gaps; all bits above the last field are reserved and zero.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import Enum

ISA_VERSION = 1
WORD_BYTES = 16
OPCODE_BITS = 8
MAX_LOOP_DEPTH = 8
ADDRESS_REGISTERS = 256  # a0 reads as address 0 of DRAM and cannot be written
SEMAPHORES = 128  # shared by all streams; a program without streams needs fewer than 64
SEMAPHORE_MAX = (1 << 16) - 1
STREAMS = 6  # stream 0 runs the program; fork starts the others

PARAMETER_ROWS: tuple[str, ...] = ("bias", "alpha", "theta", "v_reset", "gain", "offset", "initial", "beta")
"""Rows of operand ``par`` of ``v.lif`` and ``v.grad``."""
PLAIN_PARAMETER_ROWS = 4
"""How many of them there are when ``drive`` is plain."""

SURROGATES = ("rectangular", "triangular", "atan", "sigmoid", "fast_sigmoid", "exponential", "gaussian")
"""Derivatives of a spike; the first two are 0 from their width on."""

MOST_SPIKES = 1 << 24
"""Spikes of a neuron and step that binary32 can count."""

LEARNED_MAPS: tuple[str, ...] = ("unit", "sigmoid", "falling", "unit_slope", "sigmoid_slope", "falling_slope")
"""What ``v.map`` computes for learned constants; a slope has a second operand."""
GATE_MAPS: tuple[str, ...] = ("keep", "drop", "negate")
"""What ``v.map`` computes where the spikes of its second operand let values through or hold them back."""
BINARY_MAPS: tuple[str, ...] = ("add", *GATE_MAPS, *(name for name in LEARNED_MAPS if name.endswith("_slope")))

MEMORIES: tuple[str, ...] = ("DRAM", "W", "S", "U", "G", "M", "A", "L")
"""Memory numbers as used by ``addr``: DRAM, then the named on-chip memories (L holds look-up tables)."""

ENGINES: tuple[str, ...] = ("DMAIN", "DMAOUT", "FE", "BE", "WUE", "VEC")
"""Engine (queue) numbers as used by ``signal``, ``wait`` and ``nop``."""

CONTROL = "CTRL"  # executed by the front end itself
BY_FIELD = "FIELD"  # queued on the engine that the instruction names


class Kind(Enum):
    """How the bits of a field are read, printed and checked."""

    UINT = "uint"  # unsigned integer
    INT = "int"  # two's complement integer
    F32 = "f32"  # IEEE binary32 bits
    ENUM = "enum"  # index into ``values``
    AREG = "areg"  # address register number, printed ``a12``
    DESC = "desc"  # descriptor number of kind ``of``, printed ``c3``
    RAW = "raw"  # 64 raw bits, meaning given by another field (cfg)


@dataclass(frozen=True)
class Field:
    """One operand field: ``low`` and ``high`` are inclusive legal values (defaults: all that fit)."""

    name: str
    bits: int
    kind: Kind
    doc: str
    values: tuple[str, ...] = ()
    of: str = ""
    low: int | None = None
    high: int | None = None

    @property
    def minimum(self) -> int:
        """Smallest legal value."""
        if self.low is not None:
            return self.low
        return -(1 << (self.bits - 1)) if self.kind is Kind.INT else 0

    @property
    def maximum(self) -> int:
        """Largest legal value."""
        if self.high is not None:
            return self.high
        if self.kind is Kind.ENUM:
            return len(self.values) - 1
        return (1 << (self.bits - 1 if self.kind is Kind.INT else self.bits)) - 1


@dataclass(frozen=True)
class Instruction:
    """One row of the table. ``reads`` and ``writes`` name the address operands through which memory is touched.

    ``block``: the field that counts the instructions of the block after this one; text has the block in its place.
    """

    mnemonic: str
    opcode: int
    engine: str
    fields: tuple[Field, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    action: str
    latency: str
    doc: str
    block: str = ""

    @property
    def coordinates(self) -> frozenset[str]:
        """Register operands whose value counts, not the memory: those through which no memory is touched."""
        registers = (field.name for field in self.fields if field.kind is Kind.AREG)
        return frozenset(registers) - frozenset(self.reads + self.writes)


@dataclass(frozen=True)
class Descriptor:
    """A numbered record that ``cfg`` fills, one field at a time; all fields start as 0."""

    name: str
    prefix: str
    count: int
    fields: tuple[Field, ...]
    doc: str

    def field_index(self, name: str) -> int:
        """Return the number of field ``name``; raises KeyError when there is none."""
        for index, field in enumerate(self.fields):
            if field.name == name:
                return index
        raise KeyError(name)


def _u(name: str, bits: int, doc: str, high: int | None = None, low: int | None = None) -> Field:
    return Field(name, bits, Kind.UINT, doc, low=low, high=high)


def _i(name: str, bits: int, doc: str) -> Field:
    return Field(name, bits, Kind.INT, doc)


def _f(name: str, doc: str) -> Field:
    return Field(name, 32, Kind.F32, doc)


def _e(name: str, values: tuple[str, ...], doc: str, bits: int = 4) -> Field:
    return Field(name, bits, Kind.ENUM, doc, values=values)


def _a(name: str, doc: str) -> Field:
    return Field(name, 8, Kind.AREG, doc)


def _d(of: str) -> Field:
    return Field("desc", 8, Kind.DESC, f"{of} descriptor", of=of, high=63)


_DTYPE = _e("dtype", ("f32", "f16"), "storage type of weights, membrane potentials, LUT entries and gradients")
MAX_PLANES = 24
"""Most bit-planes of a number: those that fp32 holds exactly."""

_PLANES = (
    _u("planes", 5, "bit-planes of a number (fe.run: 0 for spikes)", high=MAX_PLANES),
    Field("frac", 6, Kind.INT, "plane p counts 2^(p - frac)"),
    _e("signed", ("no", "yes"), "the last plane counts negative", bits=1),
)
_GBLK = _u("gblk", 8, "channels per gradient slot", low=0, high=64)
_ENGINE = _e("engine", ENGINES, "the queue")
_SEM = _u("sem", 7, "semaphore number")
NEVER_INIT = 1 << 8
"""The value of a field ``init`` that never starts fresh."""

_INIT = _u("init", 9, "start fresh when every loop level in bits 0-7 is at its first iteration; bit 8: never")

DESCRIPTORS: tuple[Descriptor, ...] = (
    Descriptor(
        "areg",
        "a",
        ADDRESS_REGISTERS,
        tuple(_i(f"stride{k}", 48, f"bytes (or coordinate units) per iteration of loop level {k}") for k in range(8))
        + tuple(_u(f"step{k}", 16, f"ring slots per iteration of loop level {k}, modulo ring") for k in range(8))
        + (
            _u("ring", 16, "number of ring slots; 0 and 1 mean no ring"),
            _u("rbytes", 32, "bytes from one ring slot to the next"),
        ),
        "address register: base + sum(idx[k]*stride[k]) + (sum(idx[k]*step[k]) mod ring) * rbytes",
    ),
    Descriptor(
        "xfer",
        "x",
        64,
        (
            _e("mode", ("plain", "slots"), "bytes, or gradient slots (bitmap + packed values)"),
            _u("run", 32, "contiguous bytes of the innermost row"),
            _u("slot", 16, "bytes of one gradient slot (slots mode)"),
            _u("item", 8, "bytes of one value in a slot (slots mode)"),
            _u("pack", 8, "consecutive slots that DRAM holds as one packed unit; 0 and 1: each by itself (slots mode)"),
            *(_u(f"n{k}", 32, f"count of dimension {k} (0 outermost)") for k in range(4)),
            *(_i(f"ss{k}", 48, f"source stride of dimension {k}, bytes") for k in range(4)),
            *(_i(f"ds{k}", 48, f"destination stride of dimension {k}, bytes") for k in range(4)),
            _u("ylim", 32, "rows of dimension 2 with y + i2 outside [0, ylim) do not exist in DRAM"),
            _u("xlim", 32, "columns of dimension 3 with x + i3 outside [0, xlim) do not exist in DRAM"),
        ),
        "strided transfer of n0 x n1 x n2 x n3 rows of `run` bytes",
    ),
    Descriptor(
        "conv",
        "c",
        64,
        (
            _u("imgs", 32, "images (time x batch) in the tile"),
            _u("oh", 16, "rows of positions"),
            _u("ow", 16, "columns of positions"),
            _u("kh", 8, "kernel rows"),
            _u("kw", 8, "kernel columns"),
            _u("sh", 8, "stride down"),
            _u("sw", 8, "stride across"),
            _u("c", 16, "input channels of the layer (in this tile)"),
            _u("k", 16, "output channels of the layer (in this tile)"),
            _u("fan", 4, "LUT fan-in n", high=8),
            _DTYPE,
            _u("gh", 16, "be.run: rows of the gradient tile"),
            _u("gw", 16, "be.run: columns of the gradient tile"),
            _u("py", 16, "be.run: row offset of the tile's first position against gradient row 0"),
            _u("px", 16, "be.run: column offset"),
            _GBLK,
            *_PLANES,
        ),
        "geometry of a convolution tile",
    ),
    Descriptor(
        "neuron",
        "n",
        64,
        (
            _u("n", 32, "positions"),
            _u("k", 16, "channels"),
            _DTYPE,
            _GBLK,
            _e(
                "reset", ("hard", "soft", "none", "soft_delayed", "hard_delayed"), "reset of the membrane after a spike"
            ),
            _e("spike", ("gt", "ge", "never"), "spike when u > theta, u >= theta, or never (leaky integrator)"),
            _e("surrogate", SURROGATES, "surrogate derivative"),
            _f("width", "width of the surrogate, in units of u; half width of a window"),
            _f("height", "height of the surrogate at the threshold"),
            _e("detach", ("no", "yes"), "leave the reset path out of the gradient"),
            _e(
                "seen",
                ("potential", "window", "inside"),
                "v.grad: operand u holds potentials, the bits of the window in which the surrogate is not 0, "
                "or slots of the potentials inside it",
            ),
            _e("save_u", ("no", "yes", "inside"), "write u to operand uo: all, or slots of those inside the window"),
            _e("save_m", ("no", "yes"), "write the surrogate mask to operand mo"),
            _e(
                "drive",
                ("plain", "scaled", "synapse", "delayed"),
                "the current as it is; times gain plus offset; through a synapse; through one that acts a step later",
            ),
            _e("counted", ("no", "yes"), "spikes are bits, or numbers in storage type: how often theta goes into u"),
            _u("most", 25, "most spikes of a neuron where they are counted; 0: any number", high=MOST_SPIKES),
            _e("bounded", ("no", "yes"), "potentials do not stay below `lowest` after the reset"),
            _f("lowest", "lowest potential after the reset"),
            _e("periodic", ("no", "yes"), "the surrogate repeats at every multiple of theta"),
            _u("ublk", 8, "channels per slot of potentials inside the window", low=0, high=64),
        ),
        "neuron tile: equation and surrogate",
    ),
    Descriptor(
        "pool",
        "p",
        64,
        (
            _u("imgs", 32, "images (time x batch) in the tile"),
            _u("oh", 16, "rows of the result tile"),
            _u("ow", 16, "columns of the result tile"),
            _u("kh", 8, "window rows"),
            _u("kw", 8, "window columns"),
            _u("sh", 8, "stride down"),
            _u("sw", 8, "stride across"),
            _u("k", 16, "channels"),
            _e("kind", ("avg", "max", "sum"), "what a window becomes"),
            _e("src", ("bits", "f32", "slots"), "format of the source tile"),
            _e("dst", ("bits", "f32", "storage", "slots"), "format of the result tile"),
            _DTYPE,
            _GBLK,
            _u("gh", 16, "v.unpool: rows of the source (pooled) tile"),
            _u("gw", 16, "v.unpool: columns of the source tile"),
            _u("py", 16, "v.unpool: row offset of the tile's first position against pooled row 0"),
            _u("px", 16, "v.unpool: column offset"),
            _u("ylim", 32, "v.pool max: source rows with y + row outside [0, ylim) take no part; 0: all do"),
            _u("xlim", 32, "v.pool max: source columns with x + column outside [0, xlim) take no part; 0: all do"),
        ),
        "pooling tile",
    ),
    Descriptor(
        "vec",
        "v",
        64,
        (
            _u("n", 32, "positions, samples or elements"),
            _u("k", 16, "channels or classes"),
            _u("steps", 32, "time steps (v.rng, v.drop: positions per sample)"),
            _e(
                "kind",
                ("rate", "mean", "last", "tsum", "bias", "cross_entropy", "mse", "copy", "add", "count", "max")
                + LEARNED_MAPS
                + (*GATE_MAPS, "sum"),
                "what v.reduce, v.loss and v.map compute",
                bits=8,
            ),
            _e("a", ("f32", "bits", "storage", "slots"), "v.map, v.drop: format of operand a"),
            _e("b", ("f32", "bits", "storage", "slots", "row"), "v.map: format of b (row: f32, one per channel)"),
            _e("dst", ("f32", "storage", "slots", "bits"), "v.map, v.drop: format of the result (bits: v.map)"),
            _DTYPE,
            _GBLK,
            _u("stream", 32, "random stream number"),
            _f("p0", "v.loss: factor of the gradient; v.drop: share of values that stay"),
            _f("hit", "v.loss mse: target of the label's class"),
            _f("miss", "v.loss mse: target of the other classes"),
            _f("share", "v.loss mse: factor of the loss; v.drop: factor of what stays"),
            *_PLANES,
        ),
        "plain vector work",
    ),
    Descriptor(
        "opt",
        "o",
        64,
        (
            _u("n", 32, "parameters"),
            _e("kind", ("sgd", "nesterov", "adam", "adamw"), "the optimizer"),
            _DTYPE,
            _f("scale", "factor of the gradient read"),
            _f("decay", "weight decay"),
            _f("momentum", "sgd, nesterov: share of the velocity that is kept"),
            _f("rate1", "adam, adamw: share of the new gradient in its average"),
            _f("rate2", "adam, adamw: share of the new square in its average"),
            _f("eps", "adam, adamw: added to the root of the average square"),
        ),
        "optimizer step",
    ),
    Descriptor(
        "norm",
        "b",
        64,
        (
            _u("steps", 32, "time steps of the tile"),
            _u("n", 32, "samples of the tile"),
            _u("positions", 32, "positions of a sample in the tile"),
            _u("k", 16, "channels"),
            _e("kind", ("sum", "square", "product", "mean", "deviation", "forward", "backward"), "what is computed"),
            _DTYPE,
            _GBLK,
            _u("count", 32, "values per channel of one sample, all tiles together"),
            _u("repeats", 32, "v.fold: how often a value counts in the running variance", low=0),
            _f("eps", "v.fold: added to the variance"),
            _f("momentum", "v.fold: share of the batch in the running statistics"),
        ),
        "batch normalisation",
    ),
)

INSTRUCTIONS: tuple[Instruction, ...] = (
    Instruction("halt", 0x00, CONTROL, (), (), (), "stop dispatch", "0", "Ends its stream; queued work completes."),
    Instruction("nop", 0x01, BY_FIELD, (_ENGINE,), (), (), "nothing", "1", "Occupies its engine for one cycle."),
    Instruction(
        "cfg",
        0x02,
        CONTROL,
        (
            _e("kind", tuple(d.name for d in DESCRIPTORS), "descriptor kind"),
            _u("index", 8, "descriptor number"),
            _u("field", 8, "field number"),
            Field("value", 64, Kind.RAW, "new value"),
        ),
        (),
        (),
        "desc[kind][index].field = value",
        "1",
        "Writes one field of a numbered descriptor. Queued instructions keep the contents they were dispatched with.",
    ),
    Instruction(
        "addr",
        0x03,
        CONTROL,
        (
            Field("reg", 8, Kind.AREG, "the register", low=1),
            _e("mem", MEMORIES, "memory"),
            _i("base", 48, "byte address (or coordinate) at loop indices 0"),
        ),
        (),
        (),
        "a[reg] = {mem, base}, strides, steps and ring cleared",
        "1",
        "Sets an address register; strides and the ring follow by cfg.",
    ),
    Instruction(
        "loop",
        0x04,
        CONTROL,
        (_u("count", 32, "iterations"),),
        (),
        (),
        "repeat up to the matching endl",
        "1",
        "Opens a loop at the next level; zero iterations are legal.",
    ),
    Instruction("endl", 0x05, CONTROL, (), (), (), "next iteration or leave", "1", "Closes the innermost loop."),
    Instruction(
        "signal",
        0x06,
        BY_FIELD,
        (_ENGINE, _SEM, _u("count", 16, "how much", low=1)),
        (),
        (),
        "sem += count",
        "1",
        "Posts when all earlier work of the engine is complete; overflow past 65535 is a fault.",
    ),
    Instruction(
        "wait",
        0x07,
        BY_FIELD,
        (_ENGINE, _SEM, _u("count", 16, "how much", low=1)),
        (),
        (),
        "block the queue until sem >= count, then sem -= count",
        "1",
        "Tokens are consumed in the order they were posted.",
    ),
    Instruction(
        "setup",
        0x09,
        CONTROL,
        (_u("address", 48, "first word, in .rodata"), _u("count", 16, "how many words")),
        (),
        (),
        "execute `count` words (addr or cfg only) that lie at DRAM[address]",
        "count",
        "Sets up the registers and descriptors of a stage from a table of constant words.",
    ),
    Instruction(
        "fence",
        0x08,
        CONTROL,
        (),
        (),
        (),
        "wait for all queues of the stream",
        "drain",
        "The stream dispatches nothing more until all that it has dispatched is done.",
    ),
    Instruction(
        "fork",
        0x0A,
        CONTROL,
        (
            _u("stream", 4, "the stream to start", low=1, high=STREAMS - 1),
            _u("length", 32, "instructions of its block, the halt at its end included", low=1),
        ),
        (),
        (),
        "start stream at pc + 1; pc += length",
        "1",
        "Starts a stream at the next instruction, with registers, descriptors and loops of its own, all cleared; the "
        "stream that forks goes on behind the block.",
        "length",
    ),
    Instruction(
        "ld",
        0x10,
        "DMAIN",
        (_a("dst", "on chip"), _a("src", "in DRAM"), _a("y", "row coordinate"), _a("x", "column"), _d("xfer")),
        ("src",),
        ("dst",),
        "dst[i] = src[i] where the row and column exist, else 0",
        "dram_latency + bytes / dram_bytes_per_cycle",
        "Strided load with zero-fill padding.",
    ),
    Instruction(
        "st",
        0x11,
        "DMAOUT",
        (_a("dst", "in DRAM"), _a("src", "on chip"), _a("y", "row coordinate"), _a("x", "column"), _d("xfer")),
        ("src",),
        ("dst",),
        "dst[i] = src[i] where the row and column exist",
        "dram_latency + bytes / dram_bytes_per_cycle",
        "Strided store; rows and columns outside the tensor are dropped.",
    ),
    Instruction(
        "fe.fill",
        0x20,
        "FE",
        (_a("lut", "tables"), _a("w", "weights"), _d("conv")),
        ("w",),
        ("lut",),
        "entry[p] = st(entry[p & (p-1)] + w[ctz(p)])",
        "ceil(taps * groups * k * (2^fan - 1) / builder_entries)",
        "Builds the tables of a weight tile. Runs on the builder, beside an earlier fe.run of another table.",
    ),
    Instruction(
        "fe.run",
        0x21,
        "FE",
        (
            _a("acc", "sums"),
            _a("s", "spikes"),
            _a("lut", "tables"),
            _d("conv"),
            _INIT,
            _e("shape", ("16x128", "32x64", "64x32", "128x16", "256x8"), "lanes: output channels x positions"),
        ),
        ("acc", "s", "lut"),
        ("acc",),
        "acc[pos][k] (+)= lut[tap][group][pattern(s)][k]",
        "ceil(k/lanes_k) * ceil(positions/lanes_p) * taps * groups * max(1, planes)",
        "Forward convolution of spikes, or of numbers as bit-planes, by look-up.",
    ),
    Instruction(
        "be.fwd",
        0x30,
        "BE",
        (_a("acc", "sums"), _a("x", "real input"), _a("w", "weights"), _d("conv"), _INIT),
        ("acc", "x", "w"),
        ("acc",),
        "acc[pos][k] (+)= x[pos+tap][c] * w[tap][c][k]",
        "live products / MACs",
        "Forward convolution of a real-valued input on the multipliers; zero inputs are skipped.",
    ),
    Instruction(
        "be.run",
        0x31,
        "BE",
        (
            _a("acc", "gradient with respect to the layer's input"),
            _a("g", "gradient slots"),
            _a("w", "weights"),
            _a("m", "mask"),
            _d("conv"),
            _INIT,
            _e("mode", ("dense", "in", "out", "dual"), "which zeros save cycles"),
            _e("masked", ("no", "yes"), "write +0 where the mask is 0", bits=1),
        ),
        ("acc", "g", "w", "m"),
        ("acc",),
        "acc[pos][c] (+)= g[(pos+off-tap)/stride][k] * w[tap][c][k]",
        "live products / MACs, by issues of four rows of 16",
        "Input gradient (transposed convolution) with input and output sparsity.",
    ),
    Instruction(
        "be.wgt",
        0x32,
        "BE",
        (_a("acc", "weight gradient"), _a("x", "real input"), _a("g", "gradient slots"), _d("conv"), _INIT),
        ("acc", "x", "g"),
        ("acc",),
        "acc[tap][c][k] (+)= x[pos+tap][c] * g[pos][k]",
        "live products / MACs",
        "Weight gradient of a layer with real-valued input.",
    ),
    Instruction(
        "wu.run",
        0x40,
        "WUE",
        (_a("acc", "weight gradient"), _a("s", "spikes"), _a("g", "gradient slots"), _d("conv"), _INIT),
        ("acc", "s", "g"),
        ("acc",),
        "acc[tap][c][k] (+)= table(g of n positions)[pattern(s)]",
        "ceil(k/32) * ceil(c*taps/64) * groups",
        "Weight gradient by look-up: tables of sums of n gradients, indexed by n spikes.",
    ),
    Instruction(
        "v.lif",
        0x50,
        "VEC",
        (
            _a("acc", "input current"),
            _a("par", "parameter rows"),
            _a("us", "membrane state"),
            _a("ss", "spike state"),
            _a("so", "spikes, as bits or counted"),
            _a("uo", "membrane, saved"),
            _a("mo", "surrogate mask, saved"),
            _a("cs", "synaptic current state"),
            _d("neuron"),
            _INIT,
        ),
        ("acc", "par", "us", "ss", "cs"),
        ("us", "ss", "so", "uo", "mo", "cs"),
        "u = alpha*reset(u, s) + drive(acc + bias); s = u > theta",
        "ceil(n*k/lanes)",
        "One time step of a neuron tile.",
    ),
    Instruction(
        "v.grad",
        0x51,
        "VEC",
        (
            _a("gs", "gradient with respect to the spikes"),
            _a("u", "membrane, or the surrogate mask"),
            _a("s", "spikes"),
            _a("par", "parameter rows"),
            _a("gc", "gradient carried from t+1"),
            _a("go", "gradient slots"),
            _a("gi", "gradient of the synaptic current carried from t+1"),
            _d("neuron"),
            _INIT,
        ),
        ("gs", "u", "s", "par", "gc", "gi"),
        ("gc", "go", "gi"),
        "gu = surrogate(u)*(gs - alpha*u*gu') + alpha*(1-s)*gu'",
        "ceil(n*k/lanes)",
        "One time step, backwards, of a neuron tile.",
    ),
    Instruction(
        "v.tune",
        0x5B,
        "VEC",
        (
            _a("dst", "gradients of decay and threshold, f32"),
            _a("g", "gradient slots"),
            _a("later", "gradient slots of the next step"),
            _a("u", "membrane"),
            _a("s", "spikes"),
            _a("par", "parameter rows"),
            _d("neuron"),
            _INIT,
        ),
        ("dst", "g", "later", "u", "s", "par"),
        ("dst",),
        "dst[0] += later*reset(u, s); dst[1] += alpha*(1-s)*later - g",
        "ceil(n*k/lanes)",
        "Gradients of learned neuron constants, over the positions of a tile; decay and threshold are rows of par.",
    ),
    Instruction(
        "v.pool",
        0x52,
        "VEC",
        (
            _a("dst", "result"),
            _a("src", "source"),
            _a("idx", "winner per window"),
            _a("y", "row coordinate of the source tile"),
            _a("x", "column coordinate"),
            _d("pool"),
        ),
        ("src",),
        ("dst", "idx"),
        "dst[pos] = avg, max or sum of src over the window",
        "ceil(imgs*oh*ow*k*kh*kw/lanes)",
        "Pooling; max records which element won.",
    ),
    Instruction(
        "v.unpool",
        0x53,
        "VEC",
        (_a("dst", "result"), _a("src", "gradient at pooled size"), _a("idx", "winner per window"), _d("pool")),
        ("src", "idx"),
        ("dst",),
        "dst[pos] = sum over windows of their share of the gradient",
        "ceil(imgs*oh*ow*k*kh*kw/lanes)",
        "Gradient of pooling.",
    ),
    Instruction(
        "v.rng",
        0x54,
        "VEC",
        (
            _a("dst", "spikes"),
            _a("src", "probabilities, f32"),
            _a("scal", "run scalars"),
            _a("pos", "sample coordinate"),
            _a("neu", "neuron coordinate"),
            _a("tick", "time coordinate"),
            _d("vec"),
        ),
        ("src", "scal"),
        ("dst",),
        "dst = philox(seed, stream, sample, neuron, tick) < src",
        "ceil(n*k/lanes)",
        "Bernoulli rate encoding with a counter-based generator.",
    ),
    Instruction(
        "v.drop",
        0x59,
        "VEC",
        (
            _a("dst", "result"),
            _a("a", "values"),
            _a("scal", "run scalars"),
            _a("pos", "sample coordinate"),
            _a("neu", "neuron coordinate"),
            _a("tick", "time coordinate"),
            _d("vec"),
        ),
        ("a", "scal"),
        ("dst",),
        "dst = philox(seed, stream, sample, neuron, tick) < p0 ? a * share : 0",
        "ceil(steps*n*k/lanes)",
        "Dropout, forwards and backwards: the same coordinates draw the same numbers.",
    ),
    Instruction(
        "v.reduce",
        0x55,
        "VEC",
        (_a("dst", "result"), _a("src", "source"), _d("vec"), _INIT),
        ("src", "dst"),
        ("dst",),
        "dst = rate, count, mean, sum, last, maximum, time sum or position sum of src",
        "ceil(steps*n*k/lanes)",
        "Reductions over time or positions.",
    ),
    Instruction(
        "v.spread",
        0x5F,
        "VEC",
        (
            _a("dst", "gradient per step, f32"),
            _a("src", "gradient of the maximum, f32"),
            _a("x", "values over time, in storage type"),
            _d("vec"),
        ),
        ("src", "x"),
        ("dst",),
        "dst[t] = src where t is the first step with the maximum of x, else 0",
        "ceil(steps*n*k/lanes)",
        "Gradient of a maximum over time.",
    ),
    Instruction(
        "v.map",
        0x58,
        "VEC",
        (
            _a("dst", "result"),
            _a("a", "first operand"),
            _a("b", "second operand, to add, for slopes and gates"),
            _d("vec"),
        ),
        ("a", "b"),
        ("dst",),
        "dst = a, a + b, or a function of a (and b)",
        "ceil(n*k/lanes)",
        "Sums of two values element by element, changes of format, learned constants, gates.",
    ),
    Instruction(
        "v.pack",
        0x5A,
        "VEC",
        (_a("dst", "bit-planes"), _a("src", "fixed-point numbers, in storage type"), _d("vec")),
        ("src",),
        ("dst",),
        "dst[pos][p][ch] = bit p of src[pos][ch] * 2^frac",
        "ceil(n*k/lanes)",
        "Cuts fixed-point numbers into bit-planes, packed along channels as spikes are.",
    ),
    Instruction(
        "v.stat",
        0x5C,
        "VEC",
        (
            _a("dst", "sums per channel, f32"),
            _a("x", "currents, f32"),
            _a("g", "gradient slots (product)"),
            _a("par", "rows: bias, mean, 1/deviation"),
            _a("scal", "run scalars"),
            _a("pos", "sample coordinate"),
            _d("norm"),
            _INIT,
        ),
        ("dst", "x", "g", "par", "scal"),
        ("dst",),
        "dst += sum of x, of (x - mean)^2, or of g and g*(x - mean)/deviation",
        "ceil(steps*n*positions*k/lanes)",
        "Sums over the valid samples of a tile, for batch statistics and the gradients of batch normalisation.",
    ),
    Instruction(
        "v.fold",
        0x5D,
        "VEC",
        (
            _a("dst", "mean or 1/deviation, f32"),
            _a("src", "sums over all tiles, f32"),
            _a("run", "running statistic, f32"),
            _a("scal", "run scalars"),
            _d("norm"),
        ),
        ("src", "run", "scal"),
        ("dst", "run"),
        "dst = src/count, or 1/sqrt(src/count + eps); run += momentum*(statistic - run)",
        "ceil(k/lanes) * 8",
        "Batch statistics from their sums; the running statistics follow.",
    ),
    Instruction(
        "v.norm",
        0x5E,
        "VEC",
        (
            _a("dst", "normalised currents (f32), or gradient slots"),
            _a("x", "currents, f32"),
            _a("g", "gradient slots (backward)"),
            _a("par", "rows: bias, mean, 1/deviation, weight, then shift, or the sums of g and of g*normalised"),
            _a("scal", "run scalars (backward)"),
            _a("pos", "sample coordinate (backward)"),
            _d("norm"),
        ),
        ("x", "g", "par", "scal"),
        ("dst",),
        "dst = (x - mean)/deviation*weight + shift, or its gradient through mean and deviation",
        "ceil(steps*n*positions*k/lanes)",
        "Batch normalisation of a tile, forwards or backwards.",
    ),
    Instruction(
        "v.loss",
        0x56,
        "VEC",
        (
            _a("loss", "loss sum"),
            _a("grad", "gradient with respect to the logits"),
            _a("logits", "logits"),
            _a("label", "labels"),
            _a("scal", "run scalars"),
            _a("pos", "sample coordinate"),
            _d("vec"),
            _INIT,
        ),
        ("loss", "logits", "label", "scal"),
        ("loss", "grad"),
        "loss += loss(logits, label)/N; grad = d loss/d logits * p0",
        "ceil(n*k/lanes) * 8",
        "Loss of n samples and its gradient; samples at or past the valid count contribute nothing.",
    ),
    Instruction(
        "v.opt",
        0x57,
        "VEC",
        (
            _a("p", "parameters, f32"),
            _a("g", "gradient, f32"),
            _a("mom", "velocity, or average of the gradient, f32"),
            _a("sq", "average of the gradient's square, f32"),
            _a("w", "storage copy"),
            _a("scal", "run scalars"),
            _d("opt"),
        ),
        ("p", "g", "mom", "sq", "scal"),
        ("p", "mom", "sq", "w"),
        "mom = momentum*mom + g*scale; p -= lr*mom; w = st(p)",
        "ceil(n/lanes)",
        "Optimizer step on n parameters.",
    ),
)

SETUP_WORDS = ("addr", "cfg")
"""What a table of ``setup`` may hold."""

BY_MNEMONIC: dict[str, Instruction] = {row.mnemonic: row for row in INSTRUCTIONS}
BY_OPCODE: dict[int, Instruction] = {row.opcode: row for row in INSTRUCTIONS}
DESCRIPTOR_BY_NAME: dict[str, Descriptor] = {d.name: d for d in DESCRIPTORS}


def field_offset(row: Instruction, name: str) -> int:
    """Return the lowest bit of field ``name`` in the word of ``row``; raises KeyError when there is none."""
    offset = OPCODE_BITS
    for field in row.fields:
        if field.name == name:
            return offset
        offset += field.bits
    raise KeyError(f"{row.mnemonic} has no field {name!r}")


def table() -> dict[str, object]:
    """Return the whole table as plain data (for JSON)."""
    return {
        "version": ISA_VERSION,
        "word_bytes": WORD_BYTES,
        "memories": list(MEMORIES),
        "engines": list(ENGINES),
        "streams": STREAMS,
        "descriptors": [asdict(d) for d in DESCRIPTORS],
        "instructions": [asdict(row) for row in INSTRUCTIONS],
    }


def isa_hash() -> str:
    """Return a 16-digit hash of everything that decides how a binary is read."""
    text = json.dumps(table(), sort_keys=True, default=lambda value: value.value)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_table() -> None:
    if len(BY_OPCODE) != len(INSTRUCTIONS) or len(BY_MNEMONIC) != len(INSTRUCTIONS):
        raise ValueError("two rows of the instruction table share an opcode or a mnemonic")
    for row in INSTRUCTIONS:
        names = [field.name for field in row.fields]
        if OPCODE_BITS + sum(field.bits for field in row.fields) > 8 * WORD_BYTES:
            raise ValueError(f"the fields of {row.mnemonic} do not fit the word")
        if len(set(names)) != len(names) or not set(row.reads + row.writes) <= set(names):
            raise ValueError(f"{row.mnemonic} names a field twice or an effect without a field")
        if row.block and row.fields[-1].name != row.block:
            raise ValueError(f"the block of {row.mnemonic} must be counted by its last field")


_check_table()
