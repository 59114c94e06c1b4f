"""Parts for cross-validation: nothing that is predicted shares a unit with what is learned from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.people.folds import fold_rows


@given(
    width=st.sampled_from([1, 2]), count=st.integers(2, 6), seed=st.integers(0, 100), data=st.data()
)
def test_units_are_on_one_side(width, count, seed, data):
    size = data.draw(st.integers(1, 60))
    units = np.random.default_rng(seed).integers(0, 12, (size, width))
    tested = []
    for train, test in fold_rows(units, count, np.random.default_rng(seed)):
        assert not set(units[train].ravel()) & set(units[test].ravel())
        assert len(train)
        tested += test.tolist()
    assert len(tested) == len(set(tested))


def test_every_pair_is_predicted_once_where_units_are_single():
    units = np.repeat(np.arange(40), 3)[:, None]
    found = fold_rows(units, 5, np.random.default_rng(0))
    assert sorted(np.concatenate([test for _, test in found])) == list(range(120))
    assert [len(test) for _, test in found] == [24] * 5


def test_nothing_to_learn_from_is_no_fold():
    assert fold_rows(np.zeros((9, 1), dtype=np.int64), 5, np.random.default_rng(0)) == []


def test_texts_of_a_pair_are_kept_together_where_they_can_be():
    """Of two texts drawn at random into four parts, a quarter would share one."""
    pairs = np.arange(200).reshape(100, 2)
    found = fold_rows(pairs, 4, np.random.default_rng(0))
    assert sum(len(test) for _, test in found) > 90


def test_what_is_connected_and_large_is_cut():
    """Two consultations of 40 statements each: both are in every part."""
    rng = np.random.default_rng(0)
    pairs = np.concatenate([rng.integers(0, 40, (300, 2)), 40 + rng.integers(0, 40, (300, 2))])
    for _, test in fold_rows(pairs, 4, np.random.default_rng(1)):
        assert (pairs[test] < 40).any()
        assert (pairs[test] >= 40).any()


@pytest.mark.parametrize("width", [1, 2])
def test_the_draw_decides(width):
    units = np.random.default_rng(0).integers(0, 30, (100, width))
    one, same, other = (
        [test.tolist() for _, test in fold_rows(units, 3, np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    )
    assert one == same != other
