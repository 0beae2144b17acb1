"""``.snn`` files to models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from h2learn.backends.h2learn.errors import H2LearnError, Location, why
from h2learn.compiler.model import Model, Network

from ..builder import NetworkBuilder, Signal, initial_parameters
from .reader import excerpt, read
from .syntax import (
    Add,
    BatchNorm,
    Concat,
    Conv,
    Delay,
    Description,
    Dropout,
    Flatten,
    Gate,
    Layer,
    Li,
    Lif,
    Linear,
    Pool,
    Readout,
    Recurrent,
    Sizes,
)


def load_snn(path: str | PathLike[str]) -> Model:
    """Return the model of a ``.snn`` file, for one sample at a time.

    Raises H2LearnError when the file cannot be read, is not UTF-8 text, or is not a valid network.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise H2LearnError(f"expected a readable file, found {why(error)}", location=str(path)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise H2LearnError("expected UTF-8 text, found other bytes", location=Location(str(path), line)) from None
    return parse_snn(text, str(path))


def parse_snn(text: str, file: str = "<text>") -> Model:
    """Return the model that ``text`` describes; ``file`` names it in errors. Raises H2LearnError."""
    description = read(text, file)
    try:
        network = build(description, 1)
    except H2LearnError as error:
        where = error.location
        if isinstance(where, Location) and not error.excerpt:
            error.excerpt = excerpt(text, where.line, where.column)
        raise
    initial = initial_parameters(network, description.init.gain, description.init.seed)
    return Model(description.name, network, initial, description.train, functools.partial(build, description))


def build(description: Description, batch: int) -> Network:
    """Return the network of a description for ``batch`` samples; raises H2LearnError where layers do not fit."""
    builder = NetworkBuilder(batch)
    source = description.input
    signal = builder.input(
        source.name,
        source.shape,
        source.location,
        time_steps=description.time_steps if source.over_time else None,
        binary=source.spikes,
        bits=source.bits,
    )
    if description.encode is not None:
        encode = description.encode
        signal = builder.encode(signal, encode.kind, description.time_steps, encode.location)
    named = {source.name: signal}
    for layer in description.layers:
        if isinstance(layer, Add | Concat):
            join = builder.add if isinstance(layer, Add) else builder.concat
            signal = join([named[term] for term in layer.terms], layer.location, layer.name)
        elif isinstance(layer, Gate):
            first, second = (named[term] for term in layer.terms)
            signal = builder.gate(first, second, layer.kind, layer.location, layer.name)
        else:
            signal = _ADD[type(layer)](builder, named[layer.source] if layer.source else signal, layer)
        named[layer.name] = signal
    last = description.layers[-1]
    builder.output(last.name if isinstance(last, Readout) else "output", signal)
    return builder.finish(description.name, description.location)


def _conv(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Conv)
    return builder.conv(
        x,
        layer.name,
        layer.channels,
        layer.location,
        kernel=_pair(builder, x, layer, layer.kernel),
        stride=_pair(builder, x, layer, layer.stride),
        padding=_pair(builder, x, layer, layer.padding, 0),
        dilation=_pair(builder, x, layer, layer.dilation),
        groups=layer.groups,
        bias=layer.bias,
    )


def _linear(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Linear)
    return builder.linear(x, layer.name, layer.features, layer.location, bias=layer.bias)


def _batch_norm(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, BatchNorm)
    return builder.batch_norm(x, layer.name, layer.location, eps=layer.eps, momentum=layer.momentum, gain=layer.gain)


def _pool(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Pool)
    kernel = _pair(builder, x, layer, layer.kernel) if layer.kernel else builder.whole_map(x, layer.location)
    stride = _pair(builder, x, layer, layer.stride) if layer.stride else kernel
    padding = _pair(builder, x, layer, layer.padding, 0)
    return builder.pool(x, layer.kind, kernel, stride, layer.location, padding=padding)


def _pair(builder: NetworkBuilder, x: Signal, layer: Conv | Pool, sizes: Sizes, down: int = 1) -> tuple[int, int]:
    """Return the sizes down and across; a row has one size, and ``down`` is nothing down."""
    if not builder.is_row(x):
        return sizes[0], sizes[-1]
    if len(sizes) > 1:
        raise H2LearnError("expected one size on rows C x L, found two", location=layer.location)
    return down, sizes[0]


def _flatten(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    return builder.flatten(x, layer.location)


def _dropout(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Dropout)
    return builder.dropout(x, layer.probability, layer.location, every_step=layer.every_step, name=layer.name)


def _lif(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Lif)
    return builder.lif(x, layer.neuron, layer.location, layer.name, layer.learned)


def _li(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Li)
    return builder.li(x, layer.membrane, layer.location, layer.name)


def _recurrent(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Recurrent)

    def neurons(current: Signal) -> Signal:
        return builder.lif(current, layer.neuron, layer.location, layer.name)

    counted = layer.neuron.counts
    return builder.recurrent(x, layer.name, neurons, layer.location, bias=layer.bias, counted=counted)


def _delay(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Delay)
    return builder.delay(x, [layer.steps], layer.location)


def _readout(builder: NetworkBuilder, x: Signal, layer: Layer) -> Signal:
    assert isinstance(layer, Readout)
    return builder.readout(x, layer.kind, layer.location)


_ADD: dict[type, Callable[[NetworkBuilder, Signal, Layer], Signal]] = {
    Conv: _conv,
    Linear: _linear,
    BatchNorm: _batch_norm,
    Pool: _pool,
    Flatten: _flatten,
    Dropout: _dropout,
    Lif: _lif,
    Li: _li,
    Recurrent: _recurrent,
    Delay: _delay,
    Readout: _readout,
}
