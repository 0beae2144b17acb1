"""Text to :class:`Description`: lark parses, this reads the tree and refuses what makes no sense, with a place."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lark import PostLex

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import MOST_SPIKES, Neuron
from h2learn.compiler.autodiff.spec import (
    LOSSES,
    METHODS,
    OPTIMIZERS,
    SGD,
    SURROGATES,
    ATan,
    FastSigmoid,
    MSECount,
    Optimizer,
    Sigmoid,
    Surrogate,
    Train,
)

from ..builder import Learned
from .syntax import (
    Add,
    BatchNorm,
    Concat,
    Conv,
    Delay,
    Description,
    Dropout,
    Encode,
    Flatten,
    Gate,
    Init,
    Input,
    Layer,
    Li,
    Lif,
    Linear,
    Pool,
    Readout,
    Recurrent,
    Sizes,
)

MAX_INTEGER = (1 << 31) - 1
MOST_REAL = float(np.finfo(np.float32).max)
MOST_BITS = 16
MAX_SEED = (1 << 64) - 1
PARAMETRISED: dict[str, tuple[str, Callable[[float], Surrogate]]] = {
    "atan": ("alpha", ATan.with_alpha),
    "sigmoid": ("slope", Sigmoid.with_slope),
    "fast_sigmoid": ("slope", FastSigmoid.with_slope),
}
"""Surrogates with the one parameter by which frameworks know them."""

Node = Tree[Token]
_READABLE = {
    "NAME": "a name",
    "NUMBER": "a number",
    "_NL": "the end of the line",
    "$END": "the end of the file",
    "_TIMES": "x",
}


def read(text: str, file: str) -> Description:
    """Return what ``text`` says; raises H2LearnError with line, column, excerpt and hint."""
    return _Reader(text, file).description()


def excerpt(text: str, line: int, column: int) -> str:
    """Return the source line with a caret below ``column``; an empty string when there is no such line."""
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        return ""
    shown = "".join(c if c.isprintable() else " " for c in lines[line - 1].rstrip("\r"))
    start = max(0, column - 80)
    return f"  {shown[start : start + 120]}\n  {' ' * (column - 1 - start)}^"


class _WholeWords(PostLex):
    """Makes the lexer always consider names, so that `liff` is one unknown word and not `lif` and `f`."""

    always_accept = ("NAME",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        return stream


@functools.cache
def _parser() -> Lark:
    grammar = importlib.resources.files(__package__).joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=False, postlex=_WholeWords())


@functools.cache
def _keywords() -> dict[str, str]:
    """Return the text of every terminal that is a fixed word."""
    return {t.name: t.pattern.value for t in _parser().terminals if t.pattern.type == "str"}


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.learns = Learned()

    def description(self) -> Description:
        tree = self.parse()
        network, *statements = _children(tree)
        self.refuse_repeats(statements)
        declared = {
            s.data: s for s in statements if s.data in ("input", "time_steps", "encode", "neuron", "train", "init")
        }
        for needed, example in (("input", "input image: 1 x 8 x 8"), ("time_steps", "time steps: 4")):
            if needed not in declared:
                self.fail(network, f"expected a statement `{needed.replace('_', ' ')}`, found none", f"add `{example}`")
        default = self.neuron(_children(declared["neuron"]), Neuron()) if "neuron" in declared else Neuron()
        self.learns = self.learned(_children(declared["neuron"]), Learned()) if "neuron" in declared else Learned()
        layers = tuple(self.layer(s, default) for s in statements if s.data in _LAYERS)
        if not layers:
            self.fail(network, "expected at least one layer, found none")
        self.refuse_unknown_sources([declared["input"], *(s for s in statements if s.data in _LAYERS)])
        self.refuse_after_readout([s for s in statements if s.data in _LAYERS])
        source = self.input(declared["input"])
        encode = self.encode(declared.get("encode"), source, declared["input"])
        return Description(
            self.at(network),
            str(_tokens(network)[0]),
            source,
            self.integer(_tokens(declared["time_steps"])[0], "number of time steps"),
            encode,
            layers,
            self.train(declared["train"]) if "train" in declared else None,
            self.init(declared["init"]) if "init" in declared else Init(),
        )

    def parse(self) -> Node:
        if not self.text.strip():
            raise H2LearnError("expected a network, found an empty file", location=Location(self.file))
        try:
            return _parser().parse(self.text + "\n")
        except UnexpectedInput as error:
            self.refuse_syntax(error)

    def refuse_syntax(self, error: UnexpectedInput) -> NoReturn:
        if isinstance(error, UnexpectedCharacters):
            self.fail_at(error.line, error.column, f"expected a word, number or sign, found {error.char!r}")
        if not isinstance(error, UnexpectedToken):
            lines = self.text.split("\n")
            self.fail_at(len(lines), len(lines[-1]) + 1, "expected more, found the end of the file")
        token, words = error.token, _keywords()
        expected = set(error.accepts or error.expected)
        if "_NL" in expected:
            expected.discard("$END")
        allowed = sorted(words[name] for name in expected if name in words and words[name].isalpha())
        found = "the end of the line" if token.type in ("_NL", "$END") else repr(_short(str(token)))
        close = difflib.get_close_matches(str(token), allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        if "CONV" in expected:
            hint = hint or f"a line starts with one of {', '.join(allowed)}"
            self.fail_at(token.line, token.column, f"expected a layer or a declaration, found {found}", hint)
        readable = sorted({_READABLE.get(name, words.get(name, "")) or name.strip("_").lower() for name in expected})
        self.fail_at(token.line, token.column, f"expected {' or '.join(readable)}, found {found}", hint)

    def fail(self, node: Node | Token, message: str, hint: str = "") -> NoReturn:
        where = self.at(node)
        self.fail_at(where.line, where.column, message, hint)

    def fail_at(self, line: int | None, column: int | None, message: str, hint: str = "") -> NoReturn:
        line, column = max(line or 0, 0), max(column or 0, 0)
        where = Location(self.file, line, column)
        raise H2LearnError(message, location=where, hint=hint, excerpt=excerpt(self.text, line, column))

    def at(self, node: Node | Token) -> Location:
        if isinstance(node, Token):
            return Location(self.file, node.line or 0, node.column or 0)
        return Location(self.file, getattr(node.meta, "line", 0), getattr(node.meta, "column", 0))

    def refuse_repeats(self, statements: Sequence[Node]) -> None:
        seen: dict[str, Node] = {}
        for statement in statements:
            key = str(statement.data)
            if key not in _LAYERS and key in seen:
                first = self.at(seen[key]).line
                self.fail(
                    statement,
                    f"expected one statement `{key.replace('_', ' ')}`, found a second",
                    f"the first is in line {first}",
                )
            seen[key] = statement
        names: dict[str, Token] = {}
        for token in (
            t for s in statements if s.data in _LAYERS or s.data == "input" for t in _tokens(s) if t.type == "NAME"
        ):
            if str(token) in names:
                line = names[str(token)].line
                self.fail(
                    token, f"expected a new name, found {_short(str(token))!r} again", f"line {line} uses it first"
                )
            names[str(token)] = token

    def refuse_unknown_sources(self, statements: Sequence[Node]) -> None:
        """Check that a layer names only the input and layers above it as what it reads."""
        known: list[str] = []
        for statement in statements:
            for token in (t for tree in statement.find_pred(_names_sources) for t in _tokens(tree)):
                if str(token) not in known:
                    close = difflib.get_close_matches(str(token), known, n=1)
                    hint = (
                        f"did you mean {close[0]}?" if close else "give the layer a name, and a place above this line"
                    )
                    self.fail(token, f"expected a layer above or the input, found {_short(str(token))!r}", hint)
            known += [str(t) for t in _tokens(statement) if t.type == "NAME"]

    def refuse_after_readout(self, layers: Sequence[Node]) -> None:
        for before, after in itertools.pairwise(layers):
            if before.data == "readout":
                self.fail(after, "expected nothing after the readout, found another layer")

    def integer(self, token: Token, what: str, low: int = 1, high: int = MAX_INTEGER) -> int:
        digits = str(token).lstrip("+")
        if not digits.isdecimal() or len(digits) > 20 or not low <= int(digits) <= high:
            self.fail(token, f"expected a {what} from {low} to {high}, found {_short(str(token))}")
        return int(digits)

    def number(
        self,
        token: Token,
        what: str,
        low: float,
        high: float = math.inf,
        *,
        open_low: bool = False,
        open_high: bool = False,
    ) -> float:
        value = float(str(token))
        if math.isfinite(value) and (value > MOST_REAL or value < -MOST_REAL or (value and not np.float32(value))):
            self.fail(token, f"expected a {what} that 32 bits can hold, found {_short(str(token))}")
        if (
            not math.isfinite(value)
            or not low <= value <= high
            or (open_low and value == low)
            or (open_high and value == high)
        ):
            limit = f"{'above' if open_low else 'of at least'} {low:g}" + (
                f" and {'below' if open_high else 'at most'} {high:g}" if high < math.inf else ""
            )
            self.fail(
                token,
                f"expected a finite {what} {limit}, found {_short(str(token))}"
                if low > -math.inf
                else f"expected a finite {what}, found {_short(str(token))}",
            )
        return value

    def sizes(self, node: Node, what: str, low: int = 1) -> Sizes:
        return tuple(self.integer(token, what, low) for token in _tokens(node))

    def options(self, nodes: Iterable[Node]) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for node in nodes:
            key = str(node.data)
            if key in found:
                self.fail(node, f"expected `{key.replace('_', ' ')}` once, found it again")
            found[key] = node
        return found

    def input(self, node: Node) -> Input:
        name, *sizes = _tokens(node)
        shape = tuple(self.integer(token, "size") for token in sizes)
        if len(shape) not in (1, 2, 3):
            self.fail(sizes[0], f"expected an input of 1 to 3 sizes (F, C x L or C x H x W), found {len(shape)}")
        found = {str(child.data): child for child in _children(node)}
        timing = found.get("timing")
        spikes = timing is not None and bool(_tokens(timing))
        bits = self.integer(_tokens(found["bits"])[0], "number of bits", 1, MOST_BITS) if "bits" in found else 0
        if bits and spikes:
            self.fail(found["bits"], "expected spikes or numbers of some bits, found both")
        return Input(self.at(node), str(name), shape, timing is not None, spikes, bits)

    def encode(self, node: Node | None, source: Input, where: Node) -> Encode | None:
        if node is None and not source.over_time:
            self.fail(
                where,
                "expected an encoding of the input, found none",
                "add `encode direct`, or `over time` to the input",
            )
        if node is None:
            return None
        if source.over_time:
            self.fail(node, "expected no encoding of an input over time, found one", "remove this line or `over time`")
        return Encode(self.at(node), str(_tokens(node)[0]))

    def neuron(self, nodes: Iterable[Node], neuron: Neuron) -> Neuron:
        for key, node in self.options(nodes).items():
            if key not in _LEARNED:
                neuron = replace(neuron, **self.neuron_option(key, node))
        return neuron

    def learned(self, nodes: Iterable[Node], learned: Learned) -> Learned:
        for key, node in self.options(nodes).items():
            if key in _LEARNED:
                constant, kind = _LEARNED[key]
                of_channels = {constant} if _children(node) else set()
                per_channel = frozenset((learned.per_channel - {constant}) | of_channels)
                kind = "sigmoid" if _tokens(node) else kind
                learned = replace(learned, **{constant: kind}, per_channel=per_channel)
        return learned

    def neuron_option(self, key: str, node: Node) -> dict[str, Any]:
        if key == "decay":
            return {"alpha": (self.decay(_tokens(node)[0]),)}
        if key == "threshold":
            return {"theta": (self.number(_tokens(node)[0], "threshold", 0.0, open_low=True),)}
        if key == "compare":
            return {"compare": "ge" if _tokens(node)[0] == ">=" else "gt"}
        if key == "surrogate":
            chosen = self.surrogate(node)
            sizes = {"width": chosen.half_width, "height": chosen.height}
            return {"surrogate": chosen.kind, "periodic": chosen.periodic, **sizes}
        if key == "max_spikes":
            most = _tokens(node)[0]
            limited = most.type == "NUMBER"
            return {"max_spikes": self.integer(most, "number of spikes", 1, MOST_SPIKES) if limited else 0}
        if key == "v_min":
            return {"v_min": self.number(_tokens(node)[0], "lowest potential", -math.inf)}
        if key == "detach_reset":
            return {"detach_reset": True}
        if key in ("gain", "leak", "initial"):
            field = "v_leak" if key == "leak" else key
            return {field: (self.number(_tokens(node)[0], key, -math.inf),)}
        if key == "synapse":
            *delayed, decay = _tokens(node)
            return {"synapse": "delayed" if delayed else "immediate", "beta": (self.decay(decay),)}
        kind, *to = _tokens(_children(node)[0])
        delays = [token for token in to if token.type == "DELAYED"]
        to = [token for token in to if token.type != "DELAYED"]
        level = self.number(to[0], "reset level", -math.inf) if to else 0.0
        return {"reset": f"{kind}_delayed" if delays else str(kind), "v_reset": (level,)}

    def decay(self, token: Token) -> float:
        return self.number(token, "decay", 0.0, 1.0)

    def layer(self, node: Node, default: Neuron) -> Layer:
        sources = [child for child in _children(node) if child.data == "source"]
        rest = Tree(node.data, [child for child in node.children if child not in sources], node.meta)
        layer = _LAYERS[str(node.data)](self, rest, default)
        return replace(layer, source=str(_tokens(sources[0])[0])) if sources else layer

    def conv(self, node: Node, default: Neuron) -> Conv:
        name, channels = _tokens(node)
        options = self.options(_children(node))
        if "kernel" not in options:
            self.fail(node, f"expected a kernel of conv {name}, found none", "add `, kernel 3 x 3`")
        kernel = self.sizes(_children(options["kernel"])[0], "kernel size")
        stride = self.sizes(_children(options["stride"])[0], "stride") if "stride" in options else (1,)
        padding = self.sizes(_children(options["padding"])[0], "padding", 0) if "padding" in options else (0,)
        dilation = self.sizes(_children(options["dilation"])[0], "dilation") if "dilation" in options else (1,)
        groups = self.integer(_tokens(options["groups"])[0], "number of groups") if "groups" in options else 1
        count, bias = self.integer(channels, "number of channels"), "no_bias" not in options
        return Conv(self.at(node), str(name), count, kernel, stride, padding, bias, dilation, groups)

    def linear(self, node: Node, default: Neuron) -> Linear:
        name, features = _tokens(node)
        return Linear(self.at(node), str(name), self.integer(features, "number of features"), not _children(node))

    def add(self, node: Node, default: Neuron) -> Add:
        return Add(self.at(node), _name(_tokens(node)), tuple(map(str, _tokens(_children(node)[0]))))

    def batchnorm(self, node: Node, default: Neuron) -> BatchNorm:
        limits = {"eps": math.inf, "momentum": 1.0, "gain": math.inf}
        numbers = {
            key: self.number(_tokens(option)[0], key, 0.0, limits[key], open_low=key != "momentum")
            for key, option in self.options(_children(node)).items()
        }
        plain = BatchNorm(self.at(node), str(_tokens(node)[0]))
        eps, momentum, gain = (numbers.get(key, getattr(plain, key)) for key in limits)
        return replace(plain, eps=eps, momentum=momentum, gain=gain)

    def concat(self, node: Node, default: Neuron) -> Concat:
        return Concat(self.at(node), _name(_tokens(node)), tuple(map(str, _tokens(_children(node)[0]))))

    def gate(self, node: Node, default: Neuron) -> Gate:
        kind, *name = _tokens(node)
        terms = tuple(map(str, _tokens(_children(node)[0])))
        if len(terms) != 2:
            self.fail(node, f"expected two layers, found {len(terms)}", f"write `{kind}: a, b`")
        return Gate(self.at(node), _name(name), str(kind), terms)

    def pool(self, node: Node, default: Neuron) -> Pool:
        *name, kind = _tokens(node)
        window, *rest = _children(node)
        options = self.options(rest)
        if window.data == "whole" and rest:
            self.fail(rest[0], "expected nothing behind `whole map`, found an option")
        size = None if window.data == "whole" else self.sizes(window, "pool size")
        stride = self.sizes(_children(options["stride"])[0], "stride") if "stride" in options else None
        padding = self.sizes(_children(options["padding"])[0], "padding", 0) if "padding" in options else (0,)
        return Pool(self.at(node), _name(name), str(kind), size, stride, padding)

    def flatten(self, node: Node, default: Neuron) -> Flatten:
        return Flatten(self.at(node), _name(_tokens(node)))

    def dropout(self, node: Node, default: Neuron) -> Dropout:
        *name, probability = (token for token in _tokens(node) if token.type != "EVERY")
        number = self.number(probability, "probability", 0.0, 1.0)
        every_step = any(token.type == "EVERY" for token in _tokens(node))
        return Dropout(self.at(node), _name(name), number, every_step)

    def lif(self, node: Node, default: Neuron) -> Lif:
        options = _children(node)
        neuron, learned = self.neuron(options, default), self.learned(options, self.learns)
        return Lif(self.at(node), _name(_tokens(node)), neuron, learned)

    def li(self, node: Node, default: Neuron) -> Li:
        *name, decay = _tokens(node)
        plain = Neuron(alpha=(self.decay(decay),), reset="none")
        return Li(self.at(node), _name(name), self.neuron(_children(node), plain))

    def recurrent(self, node: Node, default: Neuron) -> Recurrent:
        options = _children(node)
        if self.learned((option for option in options if option.data != "bias"), self.learns):
            self.fail(node, "expected constants that are not learned in a recurrent layer, found `learn`")
        neuron = self.neuron((option for option in options if option.data != "bias"), default)
        bias = "bias" in self.options(option for option in options if option.data == "bias")
        return Recurrent(self.at(node), str(_tokens(node)[0]), neuron, bias)

    def delay(self, node: Node, default: Neuron) -> Delay:
        *name, steps = _tokens(node)
        return Delay(self.at(node), _name(name), self.integer(steps, "number of time steps"))

    def readout(self, node: Node, default: Neuron) -> Readout:
        tokens = _tokens(node)
        named = tokens[0].type == "NAME"
        kind = "_".join(tokens[1:] if named else tokens)
        return Readout(self.at(node), str(tokens[0]) if named else "output", kind)

    def train(self, node: Node) -> Train:
        options = self.options(_children(node))
        train = Train()
        if "loss" in options:
            train = replace(train, loss=self.loss(_children(options["loss"])[0]))
        if "method" in options:
            train = replace(train, method=self.choose(_tokens(options["method"])[0], METHODS, "method"))
        if "optimizer" in options:
            train = replace(train, optimizer=self.optimizer(_children(options["optimizer"])[0]))
        if "surrogate" in options:
            train = replace(train, surrogate=self.surrogate(options["surrogate"]))
        if "loss_scale" in options:
            scale = self.number(_tokens(options["loss_scale"])[0], "loss scale", 0.0, open_low=True)
            train = replace(train, loss_scale=scale)
        return replace(train, detach_reset="detach_reset" in options)

    def choose(self, token: Token, allowed: Sequence[str], what: str) -> str:
        if str(token) not in allowed:
            close = difflib.get_close_matches(str(token), allowed, n=1)
            hint = f"did you mean {close[0]}?" if close else ""
            self.fail(token, f"expected {what} {' or '.join(allowed)}, found {_short(str(token))!r}", hint)
        return str(token)

    def call(self, node: Node, allowed: Sequence[str], flags: Sequence[str] = ()) -> dict[str, Token]:
        """Return the numbers of ``name(argument number, flag, ...)`` by argument; a flag gives its own name."""
        found: dict[str, Token] = {}
        for argument in _children(node):
            name, *value = _tokens(argument)
            key = self.choose(name, (*allowed, *flags), "argument")
            if key in found:
                self.fail(name, f"expected {key} once, found it again")
            if bool(value) == (key in flags):
                self.fail(name, f"expected {key} {'without' if value else 'with'} a number")
            found[key] = value[0] if value else name
        return found

    def loss(self, node: Node) -> str | MSECount:
        name = self.choose(_tokens(node)[0], LOSSES, "loss")
        arguments = self.call(node, ("correct", "incorrect") if name == "mse_count" else ())
        shares = {key: self.number(token, key, 0.0, 1.0) for key, token in arguments.items()}
        return MSECount(**shares) if shares else name

    def optimizer(self, node: Node) -> Optimizer:
        kind = OPTIMIZERS[self.choose(_tokens(node)[0], tuple(OPTIMIZERS), "optimizer")]
        if issubclass(kind, SGD):
            arguments = self.call(node, ("lr", "decay", "momentum"), ("nesterov",))
            nesterov = arguments.pop("nesterov", None)
            numbers = self.optimizer_numbers(arguments)
            if nesterov is not None and not numbers.get("momentum"):
                self.fail(nesterov, "expected a momentum above 0 with nesterov, found none")
            return kind(nesterov=nesterov is not None, **numbers)
        numbers = self.optimizer_numbers(self.call(node, ("lr", "decay", "beta1", "beta2", "eps")))
        default = kind()
        betas = (numbers.pop("beta1", default.betas[0]), numbers.pop("beta2", default.betas[1]))
        return replace(default, betas=betas, **numbers)

    def optimizer_numbers(self, arguments: Mapping[str, Token]) -> dict[str, float]:
        """Return the numbers by the optimizer's field; betas and momentum lie below 1."""
        words = {"lr": "learning rate", "decay": "weight decay"}
        fields = {"decay": "weight_decay"}
        below_one = ("momentum", "beta1", "beta2")
        return {
            fields.get(name, name): self.number(
                token, words.get(name, name), 0.0, 1.0 if name in below_one else 1e30, open_high=name in below_one
            )
            for name, token in arguments.items()
        }

    def surrogate(self, node: Node) -> Surrogate:
        call = _children(node)[0]
        kind = self.choose(_tokens(call)[0], tuple(SURROGATES), "surrogate")
        parameter, make = PARAMETRISED.get(kind, ("", None))
        arguments = self.call(call, ("half_width", "height", *([parameter] if parameter else [])))
        values = {name: self.number(token, name, 0.0, open_low=True) for name, token in arguments.items()}
        if make is None or parameter not in values:
            return SURROGATES[kind](**values, periodic=bool(_tokens(node)))
        if len(values) > 1:
            self.fail(arguments[parameter], f"expected {parameter} alone, found half_width or height beside it")
        return replace(make(values[parameter]), periodic=bool(_tokens(node)))

    def init(self, node: Node) -> Init:
        options = self.options(_children(node))
        gain = self.number(_tokens(options["gain"])[0], "gain", 0.0, 1e6) if "gain" in options else Init().gain
        seed = self.integer(_tokens(options["seed"])[0], "seed", 0, MAX_SEED) if "seed" in options else Init().seed
        return Init(gain, seed)


_LEARNED = {"learn_decay": ("decay", "unit"), "learn_threshold": ("threshold", "plain")}
"""Options that make a constant a parameter, and how the parameter gives it unless the option says otherwise."""

_LAYERS: dict[str, Callable[[_Reader, Node, Neuron], Layer]] = {
    "conv": _Reader.conv,
    "linear": _Reader.linear,
    "add": _Reader.add,
    "concat": _Reader.concat,
    "gate": _Reader.gate,
    "batchnorm": _Reader.batchnorm,
    "pool": _Reader.pool,
    "flatten": _Reader.flatten,
    "dropout": _Reader.dropout,
    "lif": _Reader.lif,
    "li": _Reader.li,
    "recurrent": _Reader.recurrent,
    "delay": _Reader.delay,
    "readout": _Reader.readout,
}


def _names_sources(node: Node) -> bool:
    return node.data in ("source", "terms")


def _children(node: Node) -> list[Node]:
    return [child for child in node.children if isinstance(child, Tree)]


def _tokens(node: Node) -> list[Token]:
    return [child for child in node.children if isinstance(child, Token)]


def _name(tokens: Sequence[Token]) -> str:
    return str(tokens[0]) if tokens else ""


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
