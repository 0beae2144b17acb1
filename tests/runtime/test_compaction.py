"""Lanes moved together and apart against NumPy, by the processor's instruction and by the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from h2learn.runtime.kernels import compaction
from h2learn.runtime.kernels.rows import LANES

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
OTHER = np.float32(-1)


def kernels(single: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return functions (source, chosen lanes, target) that move the lanes of a source together, and apart again."""

    def mover(inverse: bool) -> Any:
        @intrinsic
        def move(typing_context: Any, source: Any, chosen: Any, target: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                if single and not compaction.has_instructions(context):
                    pytest.skip("this processor has no such instruction")
                origin, to = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
                bits = builder.trunc(args[1], ir.IntType(LANES))
                count = compaction.count_chosen(builder, bits)
                if inverse:
                    values = compaction.load_first(builder, origin, count)
                    others = ir.Constant(_FLOATS, [float(OTHER)] * LANES)
                    spaced = compaction.apart(context, builder, values, bits, others, single=single)
                    builder.store(spaced, builder.bitcast(to, _FLOATS.as_pointer()), align=4)
                else:
                    values = builder.load(builder.bitcast(origin, _FLOATS.as_pointer()), align=4)
                    packed = compaction.together(context, builder, values, bits, single=single)
                    compaction.store_first(builder, packed, to, count)
                return context.get_dummy_value()

            return types.void(source, chosen, target), codegen

        return numba.njit(lambda source, chosen, target: move(source, chosen, target))

    return mover(inverse=False), mover(inverse=True)


@pytest.mark.parametrize("single", [True, False])
def test_chosen_lanes_move_together_and_back(single: bool) -> None:
    together, apart = kernels(single)
    rng = np.random.default_rng(0)
    for chosen in (0, 0xFFFF, 1, 0x8000, *rng.integers(1 << LANES, size=100).tolist()):
        lanes = np.flatnonzero([chosen >> lane & 1 for lane in range(LANES)])
        source, packed = rng.standard_normal(LANES).astype(np.float32), np.full(LANES, 7, np.float32)
        together(source, chosen, packed)
        np.testing.assert_array_equal(packed[: lanes.size], source[lanes])
        assert (packed[lanes.size :] == 7).all()  # nothing is written behind them
        spaced, expected = np.empty(LANES, np.float32), np.full(LANES, OTHER)
        expected[lanes] = source[lanes]
        apart(packed[: lanes.size].copy(), chosen, spaced)
        np.testing.assert_array_equal(spaced, expected)
