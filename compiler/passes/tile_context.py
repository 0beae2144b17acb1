"""What the stage lowerings of ``lut`` to ``tile`` share: values, formats, windows, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from xdsl.dialects import builtin
from xdsl.ir import Attribute, Operation, SSAValue

from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.layout import slot_channels
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.streams import Jobs, jobs_of, share
from h2learn.compiler.mapping.tiles import BackwardTile, NeuronKind, Tile, WeightTile, slot_cap
from h2learn.compiler.passes.stage_builder import Affine, Place, StageBuilder, Start
from h2learn.dialects import lut, tile
from h2learn.dialects.lut import attributes as lut_types

Neuron = lut_types.Neuron


@dataclass(frozen=True)
class Groups:
    """A loop over ``count`` groups of ``size`` samples, which come behind ``before`` samples of other loops.

    ``number``: which of its groups is at work.
    """

    number: Affine
    count: int
    size: int
    before: int


@dataclass
class TileContext:
    """State of one lowering: the builder, where each ``lut`` value lies in DRAM, machine and limits.

    ``group`` says in which loop over groups of samples the stages stand (None: in none, all samples at once).
    ``apart``: which of entry and head are parts of their own. ``short_jobs``: backward and update work gives way to
    other streams soon. ``tensors`` has the DRAM tensors of all values: a value lies in the same place for all groups,
    whatever their size, unless it has another format there.
    """

    builder: StageBuilder
    machine: Machine
    limits: TileLimits
    dtype: str
    names: dict[SSAValue, str]
    apart: tuple[str, ...] = ()
    short_jobs: bool = False
    group: Groups | None = None
    values: dict[SSAValue, SSAValue] = field(default_factory=dict)
    tensors: dict[tuple[SSAValue, str, int], SSAValue] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    shadows: dict[SSAValue, SSAValue] = field(default_factory=dict)
    constants: dict[tuple[tile.Rows, int], SSAValue] = field(default_factory=dict)

    @property
    def chip(self) -> Machine:
        """The machine with the share of the memories that the current stage has."""
        return share(self.machine, self.builder.part, self.apart)

    @property
    def jobs(self) -> Jobs:
        """How the jobs of the current part stand to those of other streams."""
        return jobs_of(self.builder.part, short=self.short_jobs)

    def samples(self, batch: int) -> int:
        """Return how many of ``batch`` samples a stage sees: a group, or all of them."""
        return batch if self.group is None else self.group.size

    @property
    def first_sample(self) -> Affine:
        """The first sample that a stage sees."""
        return Affine() if self.group is None else self.group.number * self.group.size + self.group.before

    @contextmanager
    def sample_loop(self, batch: int, size: int) -> Iterator[Affine]:
        """Open the loop over tiles of ``size`` samples and give the first sample of the tile."""
        with self.builder.loop("n", trips(self.samples(batch), size)) as n:
            yield self.first_sample + n * size

    def running_sum(self, result: SSAValue) -> tuple[SSAValue, Affine] | None:
        """Return the tensor and the leading index from which a sum over all samples goes on (None: it starts afresh).

        The first group of all reads in front of the tensor, which gives zeros.
        """
        if self.group is None:
            return None
        if self.group.before:
            return self.builder.repeat(result, 1), Affine()
        return self.builder.repeat(result, max(1, self.group.count - 1)), self.group.number + -1

    def sum_tile(
        self,
        kind: type[tile.JobOp],
        buffers: Mapping[str, SSAValue],
        params: Mapping[str, tile.Param],
        t: BackwardTile | WeightTile,
        apart: Sequence[str],
        *,
        first: Sequence[Affine],
        carry: bool,
    ) -> None:
        """Append the job that sums a tile, or one for each time step, of which the buffers ``apart`` have one each.

        Where other streams wait for the engine it should turn to them soon, and it finishes a job before it does.
        """
        if not t.by_steps:
            self.builder.job(kind, buffers, dict(params), first=first, carry=carry)
            return
        with self.builder.loop("step", t.steps) as step:
            places: dict[str, Place] = {
                role: (buffer, step) if role in apart else buffer for role, buffer in buffers.items()
            }
            fresh = first if carry or "acc" in apart else [*first, step]
            self.builder.job(kind, places, {**params, "imgs": t.samples}, first=fresh, carry=carry)

    def gblk(self, channels: int) -> int:
        """Return the channels per gradient slot of a tensor with ``channels`` channels."""
        return slot_channels(channels, slot_cap(self.machine, self.limits))

    def form_of(self, type_: Attribute) -> tuple[str, tuple[int, ...], int]:
        """Return (format, shape, channels per slot) of a ``lut`` value in DRAM."""
        shape = lut_types.shape_of(type_)
        if isinstance(type_, lut_types.SpikesType | lut_types.MaskType):
            return "bits", shape, 0
        if isinstance(type_, lut_types.WinnersType):
            return "u8", shape, 0
        if isinstance(type_, lut_types.StoreType):
            return type_.dtype, shape, 0
        if isinstance(type_, lut_types.GradsType):
            return f"slots.{type_.dtype}", shape, self.gblk(shape[-1])
        if isinstance(type_, lut_types.InsideType):
            return f"inside.{type_.dtype}", shape, self.gblk(shape[-1])
        assert isinstance(type_, builtin.TensorType)
        return ("i32" if type_.element_type == builtin.i32 else "f32"), shape or (1,), 0

    def kind(self, op: lut.LifOp | lut.LiOp | lut.GradOp) -> NeuronKind:
        """Return what the mapper needs to know of the neurons that an op computes."""
        return neuron_kind(op.neuron, self.ublk(op.u))

    def ublk(self, u: SSAValue | None) -> int:
        """Return the channels per slot of potentials: those of the tensor, the most before there is one, 0 if whole."""
        if u is None or not isinstance(u.type, lut_types.InsideType):
            return 0
        tensor = self.values.get(u)
        return self.gblk(u.type.shape[-1]) if tensor is None else tile.placed_of(tensor).gblk

    def onto(self, value: SSAValue | None) -> str:
        """Return the format of what sums go on from, empty where they start at 0."""
        return "" if value is None else self.form_of(value.type)[0]

    def declare(self, value: SSAValue, label: str, gblk: int = 0) -> SSAValue:
        """Give a ``lut`` value its DRAM tensor; ``gblk``: channels per slot (0: as many as may be)."""
        form, shape, most = self.form_of(value.type)
        return self.tensor(value, label, form, shape, gblk or most)

    def tensor(self, value: SSAValue, label: str, form: str, shape: tuple[int, ...], gblk: int = 0) -> SSAValue:
        """Give a ``lut`` value a DRAM tensor of some form, the one that it has where other groups were lowered."""
        key = value, form, gblk
        if key not in self.tensors:
            self.tensors[key] = self.builder.tensor(label, form, shape, gblk)
        self.values[value] = self.tensors[key]
        return self.values[value]

    def label(self, kind: str, op: Operation) -> str:
        """Return a unique label ``kind layer`` for a stage; the layer is that of a parameter used or updated."""
        updates = (use.operation for result in op.results for use in result.uses)
        values = [*op.operands, *(update.p for update in updates if isinstance(update, lut.OptOp))]
        layers = (self.names[value].rpartition(".")[0] for value in values if value in self.names)
        layer = next(filter(None, layers), "")
        text = f"{kind} {layer}".strip()
        count = self.labels.get(text, 0)
        self.labels[text] = count + 1
        return f"{text} {count + 1}" if count else text

    def neuron_rows(self, label: str, neuron: Neuron, channels: int) -> SSAValue:
        """Return the constant rows (bias 0, alpha, theta, v_reset ...) of a layer; equal rows are declared once."""
        rows = ((0.0,), *neuron.rows)
        if (rows, channels) not in self.constants:
            tensor = self.builder.tensor(f"{label}.constants", "f32", (len(rows), channels), rows=rows)
            self.constants[rows, channels] = tensor
        return self.constants[rows, channels]

    def neuron_params(self, neuron: Neuron) -> dict[str, tile.Param]:
        """Return the parameters that the neuron jobs share."""
        return {
            "dtype": self.dtype,
            "reset": neuron.reset,
            "spike": neuron.compare,
            "surrogate": neuron.surrogate,
            "width": float(neuron.width),
            "height": float(neuron.height),
            "drive": neuron.drive,
            "counted": "yes" if neuron.counts else "no",
            "most": neuron.most or 0,
            "bounded": "no" if neuron.lowest is None else "yes",
            "lowest": float(neuron.lowest or 0.0),
            "periodic": "yes" if neuron.periodic else "no",
        }


def neuron_kind(neuron: Neuron, ublk: int = 0) -> NeuronKind:
    """Return what the mapper needs to know of a neuron; ``ublk``: of slots of potentials, 0 where all are kept."""
    states = 2 if neuron.has_synapse else 1
    return NeuronKind(states=states, rows=1 + len(neuron.rows), counts=neuron.counts, ublk=ublk)


@dataclass(frozen=True)
class Cut:
    """Start and size of a tile along one dimension."""

    start: Start
    size: int


Window = tuple[list[Start], list[int]]
"""Where a window of a tensor starts, and its sizes."""


def activation_window(tensor: SSAValue, t: Cut, n: Cut, y: Cut, x: Cut, c: Cut) -> Window:
    """Return (starts, sizes) over an activation tensor; without a time dimension ``t`` is dropped."""
    assert isinstance(tensor.type, tile.TensorType)
    cuts = [t, n, y, x, c][5 - len(tensor.type.shape) :]
    return [cut.start for cut in cuts], [cut.size for cut in cuts]


def trips(count: int, size: int) -> int:
    """Return how many tiles of ``size`` cover ``count``."""
    return -(-count // size)


def images(tensor: SSAValue, t: Tile) -> int:
    """Return the images of a tile of ``tensor``: time steps (if it has any) times samples."""
    assert isinstance(tensor.type, tile.TensorType)
    return t.samples * (t.steps if len(tensor.type.shape) == 5 else 1)


def used(value: SSAValue | None) -> bool:
    """Whether a result is there and somebody reads it."""
    return value is not None and value.first_use is not None


def only_user(value: SSAValue, kinds: type[Operation] | tuple[type[Operation], ...]) -> Operation | None:
    """Return the only user of ``value`` when it is one of ``kinds``."""
    users = [use.operation for use in value.uses]
    return users[0] if len(users) == 1 and isinstance(users[0], kinds) else None


def leading(shape: Sequence[int]) -> int:
    """Return the time steps of an activation shape, 1 when it has none."""
    return shape[0] if len(shape) == 5 else 1


def load_scalars(ctx: TileContext, scalars: SSAValue) -> SSAValue:
    """Load the run scalars, which stay for the whole stage."""
    scal = ctx.builder.alloc("scalars", "A", "i32", (8,), slots=1)
    ctx.builder.load(scalars, scal, [0], (8,))
    return scal
