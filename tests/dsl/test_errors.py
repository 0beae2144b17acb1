"""Every wrong file is refused with a sentence and a place; nothing else is ever raised."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.compiler.frontends import builder
from h2learn.compiler.frontends.dsl import load_snn, parse_snn

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.snn"))

VALID = """network small
input image: 1 x 6 x 6
time steps: 2
encode direct
neuron: lif(decay 0.5)
conv c1: 2 channels, kernel 3 x 3
lif n1
flatten
linear f1: 3 features
lif n2
readout rate
train: loss cross_entropy, optimizer sgd(lr 0.1)
"""

WRONG = [
    # replaced, by, message, line, column, hint
    ("conv c1", "covn c1", "expected a layer or a declaration, found 'covn'", 6, 1, "did you mean conv?"),
    ("lif n1", "lifn1", "expected a layer or a declaration, found 'lifn1'", 7, 1, "did you mean lif?"),
    ("conv c1", "convc1", "found 'convc1'", 6, 1, "did you mean conv?"),
    ("3 x 3", "3 xx 3", "found 'xx'", 6, 31, ""),
    ("lif n1", "relu n1", "found 'relu'", 7, 1, "a line starts with one of"),
    ("channels", "chanels", "expected channels, found 'chanels'", 6, 12, "did you mean channels?"),
    ("2 channels, kernel 3 x 3", "2 channels", "expected a kernel of conv c1", 6, 1, "kernel 3 x 3"),
    ("kernel 3 x 3", "kernel 7 x 3", "at least 7 x 3 after padding, found 6 x 6", 6, 1, ""),
    ("kernel 3 x 3", "kernel 0 x 3", "expected a kernel size from 1", 6, 29, ""),
    ("kernel 3 x 3", "kernel 3 x 3, kernel 1 x 1", "expected `kernel` once", 6, 36, ""),
    ("kernel 3 x 3", "kernel 3 x 3, stride 0", "expected a stride from 1", 6, 43, ""),
    ("2 channels", "0 channels", "expected a number of channels from 1", 6, 10, ""),
    ("2 channels", "2.5 channels", "found 2.5", 6, 10, ""),
    ("2 channels", "-2 channels", "found -2", 6, 10, ""),
    ("2 channels", "99999999999999999999999 channels", "found 99999999999999999999999", 6, 10, ""),
    ("2 channels", "2000000000 channels", "parameters, found 18000000000 with c1.weight", 6, 1, ""),
    ("conv c1", "conv c1 from c2", "expected a layer above or the input, found 'c2'", 6, 14, "give the layer a name"),
    ("lif n1", "lif n1 from imag", "expected a layer above or the input, found 'imag'", 7, 13, "did you mean image?"),
    (
        "lif n1",
        "lif n1\nadd: n1, n3",
        "expected a layer above or the input, found 'n3'",
        8,
        10,
        "give the layer a name",
    ),
    (
        "lif n1",
        "lif n1\nadd: n1, image",
        "expected values of one shape to add, found 2 x 4 x 4 spikes",
        8,
        1,
        "1 x 1 conv",
    ),
    ("lif n1", "lif n1\nadd: n1", "found the end of the line", 8, 8, ""),
    (
        "kernel 3 x 3",
        "kernel 3 x 3, groups 2",
        "expected channels of conv c1 that 2 groups divide, found 1 to 2",
        6,
        1,
        "",
    ),
    ("kernel 3 x 3", "kernel 3 x 3, dilation 3", "at least 7 x 7 after padding, found 6 x 6", 6, 1, ""),
    ("lif n1", "lif n1\nconcat: n1, image", "expected values that differ in channels only, found 2 x 4 x 4", 8, 1, ""),
    ("flatten", "flatten f\nconcat: f, f", "expected values that differ in channels only", 9, 1, "before `flatten`"),
    ("1 x 6 x 6", "1 x 6", "expected one size on rows C x L, found two", 6, 1, ""),
    ("1 x 6 x 6", "1 x 6 x 2 x 3", "expected an input of 1 to 3 sizes", 2, 14, ""),
    ("1 x 6 x 6", "6", "expected maps C x H x W as input of conv c1, found 6 reals", 6, 1, "flatten"),
    ("1 x 6 x 6", "1 x 6 x 2000000000000", "expected a size from 1", 2, 22, ""),
    ("1 x 6 x 6", "2000000000 x 2000000 x 6", "expected input image of 1 to", 2, 1, ""),
    ("1 x 6 x 6", "1 x 6 x 6 over time", "expected no encoding of an input over time", 4, 1, "remove"),
    ("encode direct\n", "", "expected an encoding of the input", 2, 1, "encode direct"),
    ("time steps: 2\n", "", "expected a statement `time steps`", 1, 1, "time steps: 4"),
    ("input image: 1 x 6 x 6\n", "", "expected a statement `input`", 1, 1, "input image"),
    ("encode direct", "encode direct\nencode direct", "expected one statement `encode`", 5, 1, "line 4"),
    ("lif n2", "lif n1", "expected a new name, found 'n1' again", 10, 5, "line 7"),
    ("lif n1", "recurrent n1", "expected features as input of recurrent n1", 7, 1, "flatten"),
    ("lif n2", "recurrent", "found the end of the line", 10, 10, ""),
    ("lif n2", "recurrent n2: bias, bias", "expected `bias` once", 10, 21, ""),
    ("lif n2", "delay: 0 steps", "expected a number of time steps from 1", 10, 8, ""),
    ("decay 0.5", "decay -0.5", "expected a finite decay of at least 0 and at most 1, found -0.5", 5, 19, ""),
    ("decay 0.5", "decay 1e999", "expected a finite decay", 5, 19, ""),
    ("decay 0.5", "decay nan", "expected a number, found 'nan'", 5, 19, ""),
    ("decay 0.5", "threshold 1e39", "expected a threshold that 32 bits can hold, found 1e39", 5, 23, ""),
    ("decay 0.5", "threshold 1e-46", "expected a threshold that 32 bits can hold", 5, 23, ""),
    ("decay 0.5", "threshold 0", "expected a finite threshold above 0", 5, 23, ""),
    ("decay 0.5", "reset hard to -1e999", "expected a finite reset level", 5, 27, ""),
    (
        "decay 0.5",
        "surrogate atan(slope 1)",
        "expected argument half_width or height or alpha, found 'slope'",
        5,
        28,
        "",
    ),
    ("decay 0.5", "surrogate atan(alpha 2, height 1)", "expected alpha alone", 5, 34, ""),
    ("decay 0.5", "spikes per step up to 0", "expected a number of spikes from 1", 5, 35, ""),
    ("decay 0.5", "spikes per step any number, spike at u > threshold", "expected spikes at u >= threshold", 7, 1, ""),
    ("decay 0.5", "surrogate periodic triangular", "expected neurons with several spikes per step", 7, 1, ""),
    ("decay 0.5", "potential at least 1e999", "expected a finite lowest potential", 5, 32, ""),
    ("lif n1", "lif n1: learn decay, potential at least 0", "no lower bound of n1", 7, 1, ""),
    ("decay 0.5", "synapse decay 1.5", "a finite decay", 5, 27, ""),
    ("decay 0.5", "surrogate rectangle", "found 'rectangle'", 5, 23, "did you mean rectangular?"),
    ("decay 0.5", "surrogate triangular(width 1)", "found 'width'", 5, 34, "half_width"),
    ("flatten\n", "", "expected features as input of linear f1, found maps 2 x 4 x 4 spikes", 8, 1, "add `flatten`"),
    ("lif n1", "pool: max 5 x 5", "at least 5 x 5, found 4 x 4", 7, 1, ""),
    ("lif n1", "lif n1\nlif n0", "expected currents as input of lif n0", 8, 1, "between neurons"),
    ("lif n2\n", "", "expected spikes as input of readout rate", 10, 1, "membrane"),
    ("readout rate", "readout membrane last", "expected membrane potentials", 11, 1, "readout rate"),
    ("readout rate", "readout rate\nlinear f9: 2 features", "expected nothing after the readout", 12, 1, ""),
    ("cross_entropy", "crossentropy", "found 'crossentropy'", 12, 13, "did you mean cross_entropy?"),
    ("sgd(", "rmsprop(", "expected optimizer sgd or adam or adamw, found 'rmsprop'", 12, 38, ""),
    ("lr 0.1", "lr", "expected lr with a number", 12, 42, ""),
    ("lr 0.1", "lr 0.1, nesterov", "expected a momentum above 0 with nesterov", 12, 50, ""),
    ("lr 0.1", "momentum 0.5, nesterov 1", "expected nesterov without a number", 12, 56, ""),
    ("sgd(lr 0.1", "adam(beta2 1", "expected a finite beta2", 12, 49, ""),
    ("sgd(lr 0.1", "adamw(momentum 0.9", "found 'momentum'", 12, 44, ""),
    ("lr 0.1", "lr -1", "expected a finite learning rate", 12, 45, ""),
    ("lr 0.1", "lr 0.1, momentum 1", "expected a finite momentum of at least 0 and below 1, found 1", 12, 59, ""),
    ("lr 0.1", "lr 0.1, lr 0.2", "expected lr once", 12, 50, ""),
    ("direct", "poisson", "expected bernoulli or direct, found 'poisson'", 4, 8, ""),
    ("lif n1", "lif ñ", "found 'ñ'", 7, 5, ""),
    ("network small\n", "", "expected network", 1, 1, ""),
]


@pytest.mark.parametrize(("old", "new", "message", "line", "column", "hint"), WRONG, ids=[f"{w[1]!r}" for w in WRONG])
def test_refused_with_place_and_hint(old, new, message, line, column, hint):
    assert old in VALID
    with pytest.raises(H2LearnError) as caught:
        parse_snn(VALID.replace(old, new, 1), "a.snn")
    error = caught.value
    assert message in error.message
    assert error.location == Location("a.snn", line, column)
    assert hint in error.hint
    shown, caret = error.excerpt.split("\n")
    assert caret.index("^") - 2 == column - 1
    assert shown.strip()


def test_rendered_error():
    with pytest.raises(H2LearnError) as caught:
        parse_snn(VALID.replace("lif n1", "liff n1"), "a.snn")
    assert caught.value.render() == (
        "a.snn:7:1: error: expected a layer or a declaration, found 'liff'\n  liff n1\n  ^\n  hint: did you mean lif?"
    )


@pytest.mark.parametrize(
    "text", ["", " \n\n", "# only a comment\n", "network n", "network n\ninput x: 3\ntime steps: 1"]
)
def test_files_without_a_network_are_refused(text):
    with pytest.raises(H2LearnError, match="expected"):
        parse_snn(text)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(H2LearnError, match="expected a readable file, found no such file"):
        load_snn(tmp_path / "missing.snn")
    with pytest.raises(H2LearnError, match="expected a readable file"):
        load_snn(tmp_path)
    binary = tmp_path / "binary.snn"
    binary.write_bytes(b"network n\n\xff\xfe\x00\x80")
    with pytest.raises(H2LearnError, match="expected UTF-8 text") as caught:
        load_snn(binary)
    assert caught.value.location.line == 2
    binary.write_bytes(bytes(range(128)) * 20)
    with pytest.raises(H2LearnError):
        load_snn(binary)


def mutate(text, rng):
    """Return ``text`` after a few random edits of characters, words and lines."""
    words = [w for w in text.split() if w.isalnum()] + [
        "0",
        "-1",
        "1e400",
        "nan",
        "9" * 30,
        "x",
        "(",
        "\x00",
        "é",
        "\r",
    ]
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:place] + chr(rng.choice([*range(32, 127), 0, 9, 10, 13, 0x2028, 0x1F600])) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + rng.randint(1, 20) :]
        elif kind == 2:
            text = text[:place] + f" {rng.choice(words)} " + text[place:]
        elif kind == 3:
            old = rng.choice(text.split() or ["x"])
            text = text.replace(old, rng.choice(words), 1)
        else:
            lines = text.split("\n")
            line = lines.pop(rng.randrange(len(lines)))
            lines.insert(rng.randrange(len(lines) + 1), line)
            text = "\n".join(lines)
    return text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_mutated_files_load_or_are_refused(path, monkeypatch):
    monkeypatch.setattr(builder, "MAX_PARAMETERS", 1 << 17)
    rng, refused = random.Random(1), 0
    for _ in range(250):
        text = mutate(path.read_text(), rng)
        try:
            parse_snn(text)
        except H2LearnError as error:
            refused += 1
            assert error.render()
    assert 0 < refused < 250
