"""Equal steps in sequences, and families of what they name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from h2learn.compiler.mapping.repeats import Families, Repeat, Step, bring_together, equal_first, find_repeats


def steps(text: str) -> list[Step]:
    """Return steps from ``form:name,name form:...``; form ``-`` never repeats."""
    found = []
    for word in text.split():
        form, _, names = word.partition(":")
        found.append(Step(None if form == "-" else form, tuple(names.split(",")) if names else ()))
    return found


def repeats(*texts: str) -> tuple[list[list[Repeat]], list[list[Hashable]]]:
    found, families = find_repeats([steps(text) for text in texts], lambda name: str(name)[0])
    return found, families.all()


def test_blocks_of_two_steps_and_what_they_hand_on() -> None:
    forward = "A:w0,s0,i0 B:v0,i0,s1 A:w1,s1,i1 B:v1,i1,s2 A:w2,s2,i2 B:v2,i2,s3"
    found, families = repeats(forward)
    assert found == [[Repeat(0, 2, 3)]]
    assert families == [["w0", "w1", "w2"], ["s0", "s1", "s2", "s3"], ["i0", "i1", "i2"], ["v0", "v1", "v2"]]


def test_what_goes_forward_in_one_sequence_may_go_backward_in_another() -> None:
    found, families = repeats("A:w0 A:w1 A:w2", "B:w2,g2 B:w1,g1 B:w0,g0")
    assert found == [[Repeat(0, 1, 3)], [Repeat(0, 1, 3)]]
    assert families == [["w0", "w1", "w2"], ["g2", "g1", "g0"]]


def test_every_other_member_is_an_even_move() -> None:
    found, families = repeats("A:w0 A:w1 A:w2 A:w3", "B:w0 C:w1 B:w2 C:w3")
    assert found == [[Repeat(0, 1, 4)], [Repeat(0, 2, 2)]]
    assert families == [["w0", "w1", "w2", "w3"]]


def test_families_that_would_cross_keep_steps_apart() -> None:
    found, families = repeats("A:w0 A:w1 A:w2", "B:w0 B:w2 B:w1")
    assert found == [[Repeat(0, 1, 3)], [Repeat(0, 1, 2)]], "of the second only what moves evenly"
    assert families == [["w0", "w1", "w2"]]


def test_members_have_one_kind_and_one_place() -> None:
    assert repeats("A:w0 A:v1")[0] == [[]]
    assert repeats("A:w0 A:w1 A:w0")[0] == [[Repeat(0, 1, 2)]]
    assert repeats("A:c,w0 A:c,w1")[1] == [["w0", "w1"]]


def test_what_is_marked_stays_alone_and_the_longest_saving_goes_first() -> None:
    assert repeats("A:w0 -:x A:w1 A:w2 A:w3 B:v0 A:w4 B:v1 A:w5")[0] == [[Repeat(2, 1, 3), Repeat(5, 2, 2)]]
    assert repeats("-:w0 -:w1")[0] == [[]]


def test_rows_interleave_in_one_family() -> None:
    """Two layers per block, which one sequence takes in turns and another one after the other, downwards."""
    blocks = "A:w0,s0,i0 B:v0,i0,s1 A:w1,s1,i1 B:v1,i1,s2 A:w2,s2,i2 B:v2,i2,s3"
    down = "U:i2,v2 U:s2,w2 U:i1,v1 U:s1,w1 U:i0,v0 U:s0,w0"
    found, families = find_repeats([steps(blocks), steps(down)], lambda name: "")
    assert found == [[Repeat(0, 2, 3)], [Repeat(0, 1, 6)]]
    assert families.all() == [["s3", "i2", "s2", "i1", "s1", "i0", "s0"], ["v2", "w2", "v1", "w1", "v0", "w0"]]


def test_equal_steps_are_brought_together() -> None:
    assert bring_together("bababpbac") == [0, 2, 4, 1, 3, 5, 6, 7, 8]
    assert bring_together("abcda") == [0, 1, 2, 3, 4], "too far apart"


def test_of_steps_that_wait_for_the_same_the_equal_one_comes_first() -> None:
    assert equal_first([("a", 1), ("p", 2), ("a", 2), ("b", 3)]) == [0, 2, 1, 3]
    assert equal_first([("a", 1), ("p", 2), ("a", 3)]) == [0, 1, 2], "it would wait longer"
    assert equal_first([("p", 1), ("a", 1), ("b", 1)]) == [0, 1, 2]


def test_a_family_cannot_close_to_a_ring() -> None:
    families = Families(lambda _: "")
    assert families.admit([("a", "b"), ("b", "c")])
    assert not families.admit([("d", "e"), ("c", "x", "a")]), "refused as a whole"
    assert families.all() == [["a", "b", "c"]]


@pytest.mark.parametrize("seed", range(100))
def test_random_sequences_fold_to_what_they_were(seed: int) -> None:
    """Written out again from its first turn, with names from families, every repeat gives the steps it stands for."""
    rng = np.random.default_rng(seed)

    def step() -> Step:
        form = int(rng.integers(1, 3))
        return Step(form, tuple(f"{kind}{rng.integers(4)}" for kind in "wv"[:form]))

    sequences = [[step() for _ in range(10)] for _ in range(2)]
    found, families = find_repeats(sequences, lambda name: str(name)[0])
    members: dict[Hashable, Sequence[Hashable]] = {family[0]: family for family in families.all()}
    assert len({name for family in members.values() for name in family}) == sum(map(len, members.values()))
    for sequence, repeated in zip(sequences, found, strict=True):
        assert all(one.end <= other.first for one, other in pairwise(repeated))
        for repeat in repeated:
            for n in range(repeat.period):
                first, second = (sequence[repeat.first + n + turn * repeat.period] for turn in (0, 1))
                for turn in range(repeat.count):
                    step = sequence[repeat.first + n + turn * repeat.period]
                    assert step.form == first.form
                    for name, one, two in zip(step.names, first.names, second.names, strict=True):
                        family, start = families.place(one)
                        move = families.place(two)[1] - start
                        assert name == (one if one == two else members[family][start + turn * move])
