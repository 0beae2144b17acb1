"""Jobs of the compute engines on buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from xdsl.dialects.builtin import IndexType, UnitAttr
from xdsl.ir import SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from .attributes import BufferType, Index, IndicesAttr, Param, ParamsAttr, PlacesAttr, parse_params
from .job_facts import FACTS, JobFacts, roles_off
from .syntax import (
    Terms,
    check_counters,
    number_counters,
    parse_expression,
    parse_optional_index,
    parse_optional_values,
    parse_value,
    print_index,
    print_indices,
    with_attributes,
)


class JobOp(IRDLOperation):
    """One job of a compute engine on buffers.

    ``buffers`` follow the roles in :data:`FACTS`, without those that the parameters switch off; ``at`` holds, per
    buffer, the leading index or nothing when the whole buffer is meant. ``coords`` are further indices (sample, neuron,
    tick coordinates). ``first`` are the loop counters that must all be 0 for a fresh start (none: always fresh, or
    never with ``carry``, which goes on from what the buffers hold).
    Text: ``tile.lif acc=%current[%step], par=%par, ... first(%t, %step) {k=32, ...}``; coordinates stand before
    ``first``: ``coords(pos=16*%n, neu=0, tick=%t)``; ``carry`` in its place.
    """

    buffers = var_operand_def(BufferType)
    ivs = var_operand_def(IndexType())
    first = var_operand_def(IndexType())
    at = prop_def(PlacesAttr)
    coords = prop_def(IndicesAttr)
    params = prop_def(ParamsAttr)
    carry = opt_prop_def(UnitAttr)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    def __init__(
        self,
        buffers: dict[str, SSAValue],
        params: dict[str, Param],
        *,
        ivs: Sequence[SSAValue] = (),
        at: dict[str, Index] | None = None,
        first: Sequence[SSAValue] = (),
        coords: Sequence[Index] = (),
        carry: bool = False,
    ) -> None:
        roles = [role for role in FACTS[self.name].roles if role in buffers]
        places = at or {}
        super().__init__(
            operands=[[buffers[role] for role in roles], list(ivs), list(first)],
            properties={
                "at": PlacesAttr(tuple(places.get(role) for role in roles)),
                "coords": IndicesAttr(tuple(coords)),
                "params": ParamsAttr(tuple(sorted(params.items()))),
                "carry": UnitAttr() if carry else None,
            },
        )

    @property
    def facts(self) -> JobFacts:
        """What is known about this kind of job."""
        return FACTS[self.name]

    def parameters(self) -> dict[str, Param]:
        """Return the named parameters."""
        return dict(self.params.data)

    def roles(self) -> tuple[str, ...]:
        """Return the roles of the buffers: those of the facts that the parameters do not switch off."""
        unused = roles_off(self.name, self.parameters())
        return tuple(role for role in self.facts.roles if role not in unused)

    def buffer(self, role: str) -> SSAValue:
        """Return the buffer in ``role``."""
        return self.buffers[self.roles().index(role)]

    def index(self, role: str) -> Index | None:
        """Return the leading index of the buffer in ``role``, None for the whole buffer."""
        return self.at.data[self.roles().index(role)]

    def places(self) -> dict[str, tuple[SSAValue, Index | None]]:
        """Return role -> (buffer, leading index or None for the whole buffer)."""
        return dict(zip(self.roles(), zip(self.buffers, self.at.data, strict=True), strict=True))

    def verify_(self) -> None:
        """Check parameters, buffers, coordinates and counters."""
        names = {name for name, _ in self.params.data}
        if names != set(self.facts.params):
            raise VerifyException(f"{self.name} expects parameters {sorted(self.facts.params)}, found {sorted(names)}")
        roles = self.roles()
        if len(self.buffers) != len(roles) or len(self.at.data) != len(roles):
            raise VerifyException(f"{self.name} expects buffers {', '.join(roles)}, found {len(self.buffers)}")
        if len(self.coords.data) != len(self.facts.coords):
            raise VerifyException(f"{self.name} expects coordinates {self.facts.coords}, found {len(self.coords.data)}")
        if self.carry is not None and self.first:
            raise VerifyException(f"{self.name} expects loop counters of a fresh start or carry, found both")
        at = [index for index in self.at.data if index is not None]
        check_counters(self, len(self.ivs), (*at, *self.coords.data))

    def print(self, printer: Printer) -> None:
        """Print buffers by role, coordinates, counters of the fresh start, parameters."""

        def place(named: tuple[str, tuple[SSAValue, Index | None]]) -> None:
            role, (buffer, index) = named
            printer.print_string(f"{role}=")
            printer.print_ssa_value(buffer)
            if index is not None:
                print_indices(printer, [index], self.ivs)

        def coordinate(named: tuple[str, Index]) -> None:
            printer.print_string(f"{named[0]}=")
            print_index(printer, named[1], self.ivs)

        printer.print_string(" ")
        printer.print_list(self.places().items(), place)
        if self.coords.data:
            printer.print_string(" coords")
            with printer.in_parens():
                printer.print_list(zip(self.facts.coords, self.coords.data, strict=True), coordinate)
        if self.first:
            printer.print_string(" first")
            with printer.in_parens():
                printer.print_list(self.first, printer.print_ssa_value)
        if self.carry is not None:
            printer.print_string(" carry")
        printer.print_string(f" {self.params}")
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        """Parse what ``print`` prints."""

        def place() -> tuple[str, SSAValue, Terms | None]:
            role = parser.parse_keyword_in(FACTS[cls.name].roles, " as role of a buffer")
            parser.parse_punctuation("=")
            return role, parse_value(parser, BufferType), parse_optional_index(parser)

        def coordinate(name: str) -> Terms:
            parser.parse_keyword(name)
            parser.parse_punctuation("=")
            return parse_expression(parser)

        places = parser.parse_comma_separated_list(parser.Delimiter.NONE, place)
        coords: list[Terms] = []
        if FACTS[cls.name].coords:
            parser.parse_keyword("coords")
            names = iter(FACTS[cls.name].coords)
            coords = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: coordinate(next(names)))
        first = parse_optional_values(parser, "first", IndexType)
        carry = parser.parse_optional_keyword("carry") is not None
        indexed = {role: index for role, _, index in places if index is not None}
        counters, indices = number_counters([*indexed.values(), *coords])
        op = cls(
            {role: buffer for role, buffer, _ in places},
            dict(parse_params(parser)),
            ivs=counters,
            at=dict(zip(indexed, indices, strict=False)),
            first=first,
            coords=indices[len(indexed) :],
            carry=carry,
        )
        return with_attributes(op, parser)


@irdl_op_definition
class FeFillOp(JobOp):
    """Build the look-up tables of a weight tile."""

    name = "tile.fe_fill"


@irdl_op_definition
class FeRunOp(JobOp):
    """Forward convolution of spikes by look-up."""

    name = "tile.fe_run"


@irdl_op_definition
class FePlanesOp(JobOp):
    """Forward convolution by look-up of numbers as bit-planes, ``[image][row][column][plane][channel]``."""

    name = "tile.fe_planes"


@irdl_op_definition
class BeFwdOp(JobOp):
    """Forward convolution of a real input on the multipliers."""

    name = "tile.be_fwd"


@irdl_op_definition
class BeRunOp(JobOp):
    """Input gradient; no role ``m`` when ``masked`` is ``no``."""

    name = "tile.be_run"


@irdl_op_definition
class BeWgtOp(JobOp):
    """Weight gradient of a layer with real input."""

    name = "tile.be_wgt"


@irdl_op_definition
class WuRunOp(JobOp):
    """Weight gradient by look-up."""

    name = "tile.wu_run"


@irdl_op_definition
class LifOp(JobOp):
    """One time step of a neuron tile.

    No role ``uo``, ``mo`` when not saved, no ``ss``, ``so`` without spikes, no ``cs`` without a synapse; counted spikes
    are in storage type and have no role ``ss``.
    """

    name = "tile.lif"


@irdl_op_definition
class GradOp(JobOp):
    """One time step, backwards, of a neuron tile; no roles ``u``, ``s`` without spikes, no ``gi`` without a synapse.

    Counted spikes have no role ``s``: the potentials say where there are any.
    """

    name = "tile.grad"


@irdl_op_definition
class TuneOp(JobOp):
    """Gradients of decay and threshold of a neuron tile, added up over its positions."""

    name = "tile.tune"


@irdl_op_definition
class PoolOp(JobOp):
    """Pooling; no role ``idx`` unless ``kind`` is ``max``.

    Elements outside rows ``0 .. ylim-1`` and columns ``0 .. xlim-1`` (0: everywhere) take no part in a maximum; the
    coordinates are the first row and column of the tile.
    """

    name = "tile.pool"


@irdl_op_definition
class UnpoolOp(JobOp):
    """Gradient of pooling; no role ``idx`` unless ``kind`` is ``max``."""

    name = "tile.unpool"


@irdl_op_definition
class RngOp(JobOp):
    """Bernoulli encoding of ``n`` samples (or positions) of ``k`` neurons."""

    name = "tile.rng"


@irdl_op_definition
class DropOp(JobOp):
    """Dropout of ``n`` samples of ``positions`` positions; ``share`` of the values stay, times ``factor``."""

    name = "tile.drop"


@irdl_op_definition
class ReduceOp(JobOp):
    """Reduction over time or positions."""

    name = "tile.reduce"


@irdl_op_definition
class SpreadOp(JobOp):
    """Gradient of a maximum over time."""

    name = "tile.spread"


@irdl_op_definition
class MapOp(JobOp):
    """Sum of two values element by element, or a change of format; no role ``b`` when ``kind`` is ``copy``."""

    name = "tile.map"


@irdl_op_definition
class PackOp(JobOp):
    """Bit-planes of fixed-point numbers."""

    name = "tile.pack"


@irdl_op_definition
class StatOp(JobOp):
    """Sums of batch normalisation; role ``g`` for ``kind`` product only."""

    name = "tile.stat"


@irdl_op_definition
class FoldOp(JobOp):
    """A batch statistic from its sum."""

    name = "tile.fold"


@irdl_op_definition
class NormOp(JobOp):
    """Batch normalisation of a tile; roles ``g`` and ``scal`` for ``kind`` backward only."""

    name = "tile.norm"


@irdl_op_definition
class LossOp(JobOp):
    """Loss of ``n`` samples and its gradient times ``scale``."""

    name = "tile.loss"


@irdl_op_definition
class OptOp(JobOp):
    """Optimizer step; no role ``mom`` without momentum, ``sq`` for Adam only, no ``w`` without a storage copy."""

    name = "tile.opt"


JOBS: tuple[type[JobOp], ...] = (
    FeFillOp,
    FeRunOp,
    FePlanesOp,
    BeFwdOp,
    BeRunOp,
    BeWgtOp,
    WuRunOp,
    LifOp,
    GradOp,
    TuneOp,
    PoolOp,
    UnpoolOp,
    RngOp,
    DropOp,
    ReduceOp,
    SpreadOp,
    MapOp,
    PackOp,
    StatOp,
    FoldOp,
    NormOp,
    LossOp,
    OptOp,
)


def unused_roles(op: JobOp) -> frozenset[str]:
    """Return the roles that the parameters of a job switch off."""
    return roles_off(op.name, op.parameters())
