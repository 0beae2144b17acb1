"""The only arithmetic that the levels share: rounding to storage, elementary functions, random numbers.

Everything here is built from IEEE binary32 ``+ - * /``, comparison and integer operations, so that NumPy, Numba and a
hardware description would give the same bits; so does the square root, which IEEE 754 rounds correctly. Sources: fp16
rounding is IEEE 754 round-to-nearest-even; exponential and logarithm follow the Cephes ``expf``/``logf`` polynomials;
Philox4x32-10 is Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)

EXP_C = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG_C = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85


def round_to_storage(x: npt.ArrayLike, dtype: str) -> F32:
    """Round float32 values to the storage type (``"f32"`` or ``"f16"``) and return them widened to float32."""
    values = np.asarray(x, dtype=np.float32)
    if dtype == "f32":
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def storage_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy dtype in which a storage type lies in memory (little-endian)."""
    return np.dtype("<f4") if dtype == "f32" else np.dtype("<f2")


def in_planes(values: npt.NDArray[Number], plane: int) -> npt.NDArray[Number]:
    """Return ``[..., k]`` as ``[k/plane, ..., plane]``, the order of planes of channels in memory (0: as it is)."""
    if not plane:
        return values
    return np.moveaxis(values.reshape(*values.shape[:-1], -1, plane), -2, 0)


def exp(x: npt.ArrayLike) -> F32:
    """Return e**x in float32, elementwise; 0 below -87.3, inf above 88.7, NaN stays NaN. Error below 2 ulp."""
    one = np.float32(1)
    v = np.asarray(x, dtype=np.float32)
    clipped = np.where((v > np.float32(-87.3)) & (v < np.float32(88.7)), v, np.float32(0))
    n = np.floor(clipped * np.float32(1.44269504088896341) + np.float32(0.5))
    r = clipped - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    y = np.full_like(r, np.float32(EXP_C[0]))
    for c in EXP_C[1:]:
        y = y * r + np.float32(c)
    y = y * (r * r) + r + one
    half = np.floor(n * np.float32(0.5))
    y = y * _power_of_two(half) * _power_of_two(n - half)
    y = np.where(v <= np.float32(-87.3), np.float32(0), y)
    y = np.where(v >= np.float32(88.7), np.float32(np.inf), y)
    return np.asarray(np.where(np.isnan(v), v, y), dtype=np.float32)


def log(x: npt.ArrayLike) -> F32:
    """Return the natural logarithm in float32, elementwise; -inf at 0, NaN below, denormals count as 0."""
    v = np.asarray(x, dtype=np.float32)
    normal = (v >= np.float32(1.17549435e-38)) & (v < np.float32(np.inf))
    bits = np.where(normal, v, np.float32(1)).view(np.int32)
    exponent = ((bits >> 23) & 0xFF) - 126
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).astype(np.int32).view(np.float32)
    small = mantissa < np.float32(0.707106781186547524)
    e = (exponent - small.astype(np.int32)).astype(np.float32)
    r = np.where(small, mantissa + mantissa, mantissa) - np.float32(1)
    z = r * r
    y = np.full_like(r, np.float32(LOG_C[0]))
    for c in LOG_C[1:]:
        y = y * r + np.float32(c)
    y = y * r * z
    y = y + e * np.float32(-2.12194440e-4)
    y = y - z * np.float32(0.5)
    y = r + y + e * np.float32(0.693359375)
    y = np.where(v == np.float32(np.inf), v, y)
    y = np.where(v < np.float32(1.17549435e-38), np.float32(-np.inf), y)
    return np.asarray(np.where((v < 0) | np.isnan(v), np.float32(np.nan), y), dtype=np.float32)


def complement_power(share: np.float32, exponent: int) -> np.float32:
    """Return ``1 - (1 - share)**exponent`` in float32 for ``0 <= share <= 1``, to a few ulp also where it is small.

    With ``d_n = 1 - (1 - share)**n`` follows ``d_{a+b} = d_a + d_b * (1 - d_a)``, a sum without cancellation; the
    exponent is taken bit by bit, lowest first.
    """
    one, result, power = np.float32(1), np.float32(0), np.float32(share)
    while exponent:
        if exponent & 1:
            result = result + power * (one - result)
        power = power + power * (one - power)
        exponent >>= 1
    return result


def surrogate(kind: str, distance: F32, width: np.float32, height: np.float32) -> F32:
    """Return the surrogate derivative of a spike, elementwise, where the potential is ``distance`` from the threshold.

    ``z = distance / width`` (the name in brackets is the usual parameter):

    * rectangular: ``height`` where ``distance < width``, else 0
    * triangular: ``height * (1 - z)`` where ``distance < width``, else 0
    * atan: ``height / (1 + z*z)`` (alpha: width 2/(pi alpha), height alpha/2)
    * sigmoid: ``e = exp(-z)``, ``q = 1 + e``, ``(4*height) * (e / (q*q))`` (slope: width 1/slope, height slope/4)
    * fast_sigmoid: ``q = 1 + z``, ``height / (q*q)`` (slope: width 1/slope, height 1)
    * exponential: ``height * exp(-z)``
    * gaussian: ``height * exp(-(z*z))``
    """
    zero, one = np.float32(0), np.float32(1)
    if kind == "rectangular":
        return np.where(distance < width, height, zero)
    z = distance / width
    if kind == "triangular":
        return np.where(distance < width, height * (one - z), zero)
    if kind == "atan":
        return np.asarray(height / (one + z * z), dtype=np.float32)
    if kind == "sigmoid":
        e = exp(-z)
        q = one + e
        return np.asarray((np.float32(4) * height) * (e / (q * q)), dtype=np.float32)
    if kind in ("exponential", "gaussian"):
        return np.asarray(height * exp(-(z * z) if kind == "gaussian" else -z), dtype=np.float32)
    q = one + z
    return np.asarray(height / (q * q), dtype=np.float32)


def philox(
    counter: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], key: tuple[int, int]
) -> npt.NDArray[np.uint32]:
    """Return the first 32-bit word of Philox4x32-10 for broadcastable uint32 ``counter`` words and a 2-word ``key``."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        p0 = c0 * np.uint64(_PHILOX_M0)
        p1 = c2 * np.uint64(_PHILOX_M1)
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> shift) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + _PHILOX_W0) & 0xFFFFFFFF, (k1 + _PHILOX_W1) & 0xFFFFFFFF
    return np.asarray(c0, dtype=np.uint32)


def uniform(
    seed: int, stream: int, sample: npt.ArrayLike, neuron: npt.ArrayLike, tick: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Return uniforms in [0, 1) with 24 random bits, keyed by (seed, stream, sample, neuron, tick).

    The counter is (neuron, tick, sample mod 2^32, stream), the key the two halves of the 64-bit ``seed``.
    """
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    bits = philox((neuron, tick, sample, stream), key)
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _power_of_two(n: F32) -> F32:
    return ((n.astype(np.int32) + 127) << 23).view(np.float32)
