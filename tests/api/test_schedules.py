"""Learning-rate schedules against those of PyTorch, and their text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from h2learn import Cosine, H2LearnError, Schedule, StepDecay
from h2learn.schedules import parse_schedule

EPOCHS, PER_EPOCH = 6, 5
STEPS = EPOCHS * PER_EPOCH


def factors(schedule: Schedule) -> list[float]:
    return [schedule.factor(step, STEPS, PER_EPOCH) for step in range(STEPS)]


def test_schedules_follow_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch.optim.lr_scheduler")
    schedulers = torch.optim.lr_scheduler

    def rates(make: Callable[[Any], Any]) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, found = make(optimizer), []
        for _ in range(STEPS):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    cosine = rates(lambda o: schedulers.CosineAnnealingLR(o, STEPS, eta_min=0.1))
    np.testing.assert_allclose(factors(Cosine(final=0.1)), cosine, rtol=1e-12)
    decay = rates(lambda o: schedulers.StepLR(o, 2 * PER_EPOCH, 0.5))
    np.testing.assert_allclose(factors(StepDecay(every=2, decay=0.5)), decay, rtol=1e-12)
    linear = rates(lambda o: schedulers.LinearLR(o, 1 / 8, 1.0, 7))
    np.testing.assert_allclose(factors(Schedule(warmup=8)), linear, rtol=1e-12)


def test_after_the_warmup_a_cosine_starts_at_the_full_rate() -> None:
    found = factors(Cosine(warmup=10))
    assert found[9] == found[10] == 1.0 and found[0] == 0.1 and 0 < found[-1] < 0.01
    assert sorted(found[10:], reverse=True) == found[10:]


def test_text() -> None:
    assert parse_schedule("cosine") == Cosine()
    assert parse_schedule("step, every=3 ,decay=0.5,warmup=2") == StepDecay(2, 3, 0.5)
    assert parse_schedule("constant") == Schedule()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear", "there is no schedule 'linear'"),
        ("cosine,every=3", "schedule cosine has no number 'every'"),
        ("step,every=two", "expected a number as every of schedule step, found 'two'"),
        ("step,every=0", "a decay every 1 or more epochs, found 0"),
        ("step,decay=nan", "a positive decay, found nan"),
        ("cosine,final=2", "a final share in"),
        ("constant,warmup=-1", "a warmup of at least 0 steps, found -1"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        parse_schedule(text)
