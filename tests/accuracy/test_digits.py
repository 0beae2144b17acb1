"""The demo's network learns the digits on the simulator, in both precisions."""

from functools import cache
from pathlib import Path

import pytest

import h2learn
from h2learn.program import Execution

MODEL = Path(__file__).parents[2] / "examples" / "digits.snn"
EPOCHS = 4


@cache
def accuracy(precision):
    history = h2learn.train(
        h2learn.load_model(MODEL),
        h2learn.load_digits(),
        EPOCHS,
        precision=precision,
        execution=Execution(timing=False),
    )
    return history.test_accuracy


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_digits_are_learned(precision):
    assert accuracy(precision) >= 0.95


def test_half_precision_is_within_one_point():
    assert abs(accuracy("fp16") - accuracy("fp32")) <= 0.01
