"""Look-ups and multipliers: tables, currents, input gradients and weight gradients."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn import numerics

from .job import ZERO, Buffers, Params, input_tile, integers, sources, taps, under_tap


def fe_fill(b: Buffers, p: Params, fresh: bool) -> None:
    """Look-up tables of a tile's weights."""
    k, c, fan = integers(p, "k", "c", "fan")
    weights = b["w"].reshape(-1, c, k)
    tables = b["lut"]
    for group in range(tables.shape[1]):
        tables[:, group, 0] = 0
        for pattern in range(1, 1 << fan):
            rest = pattern & (pattern - 1)
            channel = group * fan + (pattern ^ rest).bit_length() - 1
            row = weights[:, channel] if channel < c else ZERO
            tables[:, group, pattern] = numerics.round_to_storage(tables[:, group, rest] + row, str(p["dtype"]))


def fe_run(b: Buffers, p: Params, fresh: bool) -> None:
    """Currents from tables: taps, then groups of channels."""
    c, fan = integers(p, "c", "fan")
    acc = b["acc"]
    total = np.zeros_like(acc) if fresh else acc.copy()
    spikes = input_tile(b["s"], p, "c")
    for tap, ky, kx in taps(p):
        under = under_tap(spikes, p, ky, kx)
        for group in range(-(-c // fan)):
            bits = under[..., group * fan : min(c, group * fan + fan)]
            pattern = (bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1).reshape(acc.shape[:-1])
            summed = total + b["lut"][tap, group][pattern]
            total = np.where((pattern != 0)[..., None], summed, total)
    acc[...] = total


def fe_planes(b: Buffers, p: Params, fresh: bool) -> None:
    """Currents of fixed-point numbers: their planes one after the other."""
    c, fan, planes, frac = integers(p, "c", "fan", "planes", "frac")
    acc = b["acc"]
    total = np.zeros_like(acc) if fresh else acc.copy()
    packed = input_tile(b["s"].reshape(*b["s"].shape[:-2], planes * c), {**p, "wide": planes * c}, "wide")
    for tap, ky, kx in taps(p):
        under = under_tap(packed, p, ky, kx)
        for group in range(-(-c // fan)):
            for plane in range(planes):
                first = plane * c + group * fan
                bits = under[..., first : min(first + fan, (plane + 1) * c)]
                pattern = (bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1).reshape(acc.shape[:-1])
                entry = np.ldexp(b["lut"][tap, group][pattern], plane - frac)
                minus = p["signed"] == "yes" and plane + 1 == planes
                total = np.where((pattern != 0)[..., None], total - entry if minus else total + entry, total)
    acc[...] = total


def be_fwd(b: Buffers, p: Params, fresh: bool) -> None:
    """Currents of real inputs: taps, then channels, zeros passed over."""
    c, k = integers(p, "c", "k")
    acc = b["acc"]
    weights = b["w"].reshape(-1, c, k)
    total = np.zeros_like(acc) if fresh else acc.copy()
    inputs = input_tile(b["x"], p, "c")
    for tap, ky, kx in taps(p):
        under = under_tap(inputs, p, ky, kx).reshape(*acc.shape[:-1], c)
        for channel in range(c):
            x = under[..., channel, None]
            total = np.where(x != 0, total + x * weights[tap, channel], total)
    acc[...] = total


def be_run(b: Buffers, p: Params, fresh: bool) -> None:
    """Input gradients: taps, then channels, zeros passed over, nothing where the mask is closed."""
    imgs, oh, ow, gh, gw, c, k = integers(p, "imgs", "oh", "ow", "gh", "gw", "c", "k")
    acc = b["acc"]
    total = np.zeros((imgs, oh, ow, c), np.float32) if fresh else acc.reshape(imgs, oh, ow, c).copy()
    gradient = b["g"].reshape(imgs, gh, gw, k)
    weights = b["w"].reshape(-1, c, k)
    for tap, ky, kx in taps(p):
        for y, x, gy, gx in sources(p, ky, kx):
            for channel in range(k):
                g = gradient[:, gy, gx, channel, None]
                summed = total[:, y, x] + g * weights[tap, :, channel]
                total[:, y, x] = np.where(g != 0, summed, total[:, y, x])
    if p["masked"] == "yes":
        total = np.where(b["m"].reshape(total.shape), total, ZERO)
    acc[...] = total.reshape(acc.shape)


def be_wgt(b: Buffers, p: Params, fresh: bool) -> None:
    """Weight gradients of real inputs, position by position."""
    c, k = integers(p, "c", "k")
    total = np.zeros_like(b["acc"]) if fresh else b["acc"].copy()
    inputs = input_tile(b["x"], p, "c")
    gradient = b["g"].reshape(-1, k)
    for tap, ky, kx in taps(p):
        under = under_tap(inputs, p, ky, kx).reshape(-1, c)
        for x, g in zip(under, gradient, strict=True):
            live = (x != 0)[:, None] & (g != 0)[None, :]
            total[tap] = np.where(live, total[tap] + x[:, None] * g[None, :], total[tap])
    b["acc"][...] = total


def wu_run(b: Buffers, p: Params, fresh: bool) -> None:
    """Weight gradients of spikes: tables of groups of positions."""
    c, k, fan = integers(p, "c", "k", "fan")
    total = np.zeros_like(b["acc"]) if fresh else b["acc"].copy()
    spikes = input_tile(b["s"], p, "c")
    under = np.stack([under_tap(spikes, p, ky, kx).reshape(-1, c) for _, ky, kx in taps(p)])
    gradient = b["g"].reshape(-1, k)
    for start in range(0, len(gradient), fan):
        members = gradient[start : start + fan]
        table = np.zeros((1 << fan, k), np.float32)
        for pattern in range(1, 1 << len(members)):
            rest = pattern & (pattern - 1)
            member = members[(pattern ^ rest).bit_length() - 1]
            table[pattern] = numerics.round_to_storage(table[rest] + member, str(p["dtype"]))
        bits = under[:, start : start + fan]
        pattern_of = (bits.astype(np.int64) << np.arange(bits.shape[1])[:, None]).sum(axis=1)
        total = np.where((pattern_of != 0)[..., None], total + table[pattern_of], total)
    b["acc"][...] = total
