"""Half precision and packed bits in kernels against NumPy; the compiler wrapper without a writable cache."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from h2learn.runtime.jit import jit
from h2learn.runtime.kernels import bits, vector


def test_every_half_value_widens_exactly() -> None:
    halves = np.arange(1 << 16).astype(np.uint16)
    values = np.empty(halves.size, np.float32)
    bits.widen(halves, values)
    np.testing.assert_array_equal(values, halves.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(values), halves >> 15 == 1)


def test_rounding_to_half_goes_to_the_nearest_even() -> None:
    rng = np.random.default_rng(0)
    finite = np.arange(0x7C00).astype(np.uint16).view(np.float16).astype(np.float32)
    ties = (finite[1:] + finite[:-1]) / 2
    near = np.concatenate([np.nextafter(ties, np.float32(0)), ties, np.nextafter(ties, np.float32(np.inf))])
    anything = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = np.array([65504, 65519.996, 65520, 65536, 2.0**-24, 2.0**-25, np.inf, np.nan], np.float32)
    values = np.concatenate([near, -near, anything[~np.isnan(anything)], edges])
    halves = np.empty(values.size, np.uint16)
    bits.narrow(values, halves)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(halves.view(np.float16), expected)
    np.testing.assert_array_equal(halves >> 15 == 1, np.signbit(expected))


@pytest.mark.parametrize("k", [1, 7, 8, 13, 32])
def test_bits_unpack_and_pack_by_rows(k: int) -> None:
    rng = np.random.default_rng(k)
    packed = rng.integers(0, 256, (9, -(-k // 8)), dtype=np.uint8)
    lanes = np.zeros(-(-5 * k // 8) * 8, np.uint8)
    size = np.uint64
    bits.unpack(packed.reshape(-1), size(3), size(5), size(k), lanes)
    expected = np.unpackbits(packed[3:8], axis=1, count=k, bitorder="little")
    np.testing.assert_array_equal(lanes[: 5 * k].reshape(5, k), expected)
    again = np.full_like(packed, 255)
    bits.pack(lanes, again.reshape(-1), size(3), size(5), size(k))
    np.testing.assert_array_equal(again[3:8], np.packbits(expected, axis=1, bitorder="little"))
    assert (again[[0, 1, 2, 8]] == 255).all()


def test_philox_gives_the_published_vector() -> None:
    """Random123's known-answer test for philox4x32-10: zero counter and key, and all ones."""
    zero, ones = np.uint32(0), np.uint32(0xFFFFFFFF)
    assert vector.philox(zero, zero, zero, zero, zero, zero) == 0x6627E8D5
    assert vector.philox(ones, ones, ones, ones, ones, ones) == 0x408F276D


def test_kernels_compile_without_a_writable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def njit(cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x.py'")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"):

        @jit
        def double(x: int) -> int:
            return 2 * x

    assert double(21) == 42
