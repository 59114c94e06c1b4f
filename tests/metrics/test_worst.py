"""The worst tenth of users, without the luck of the draw; its prior against a naive search."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prlhf.metrics.intervals import Intervals
from prlhf.metrics.worst import lowest_tenth, shrink, worst_tenth, worst_user

INTERVALS = Intervals()


def users(wins, pairs):
    wins = np.asarray(wins)
    names = [f"u{i}" for i in range(len(wins))]
    return pd.DataFrame({"user_id": names, "wins": wins, "ties": 0, "losses": pairs - wins})


@pytest.mark.parametrize(
    ("count", "within"), [(10, 0.1), (30, 0.07), (100, 0.05), (1000, 0.02), (10_000, 0.01)]
)
def test_of_users_served_alike_the_worst_tenth_does_not_sink_with_their_number(count, within):
    draws = [np.random.default_rng(seed).binomial(12, 0.8, count) for seed in range(10)]
    found = [worst_tenth(INTERVALS, users(wins, 12)) for wins in draws]
    assert np.mean([each.value for each in found]) == pytest.approx(0.8, abs=within)
    assert sum(each.interval.low <= 0.8 <= each.interval.high for each in found) >= 8
    # The worst user does: no more than 0.2 of 0.8 at ten thousand.
    lowest = np.mean([worst_user(INTERVALS, users(wins, 12)).value for wins in draws])
    assert lowest == pytest.approx((draws[0].min() / 12), abs=0.2)
    assert count < 10_000 or lowest < 0.35


def test_a_worst_tenth_that_is_there_is_found():
    """One in ten is served at 0.2, the others at 0.9."""
    rng = np.random.default_rng(3)
    true = np.where(np.arange(200) < 20, 0.2, 0.9)
    table = users(rng.binomial(60, true), 60)
    found = worst_tenth(INTERVALS, table)
    # A beta distribution is no two points: they are drawn together a little.
    assert found.value == pytest.approx(0.2, abs=0.05)
    assert found.interval.high < 0.3
    assert set(lowest_tenth(table)) == {f"u{i}" for i in range(20)}


def test_it_is_what_the_tenth_can_expect():
    """Accuracies spread over the population: the mean of those named is what is said."""
    held, errors = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        true = rng.beta(8, 2.5, 100)
        wins = rng.binomial(15, true)
        named = lowest_tenth(users(wins, 15)).str.removeprefix("u").astype(int)
        found = worst_tenth(INTERVALS, users(wins, 15))
        errors.append(found.value - true[named].mean())
        held += found.interval.low <= true[named].mean() <= found.interval.high
    assert abs(np.mean(errors)) < 0.02
    assert held >= 92


def test_the_prior_is_the_likeliest_one():
    hits, pairs = np.array([9.0, 4.5, 7.0, 10.0, 2.0, 8.0, 8.0]), np.full(7, 10.0)
    grid = [(a, b) for a in np.geomspace(0.2, 20, 60) for b in np.geomspace(0.1, 10, 60)]
    whole = hits.round()
    # With whole numbers scipy's own distribution serves as the reference.
    best = max(grid, key=lambda ab: stats.betabinom.logpmf(whole, 10, *ab).sum())
    expected = (whole + best[0]) / (10 + sum(best))
    assert shrink(whole, pairs).mean == pytest.approx(expected, abs=0.02)
    assert np.all(np.diff(shrink(hits, pairs).mean[np.argsort(hits, kind="stable")]) >= 0)


def test_more_pairs_shrink_less():
    hits, pairs = (
        np.array([2.0, 20.0, *[90.0] * 8, *[60.0] * 8]),
        np.array([10.0, 100.0] + [100.0] * 16),
    )
    few, many = shrink(hits, pairs).mean[:2]
    assert 0.2 < many < few < 0.75
    variances = shrink(hits, pairs).variance[:2]
    assert variances[0] > variances[1]


def test_a_tenth_counts_in_part():
    """Of 15 users one and a half: the second worst counts half as much as the worst."""
    wins = np.array([2, 10] + [19] * 13)
    mean = np.sort(shrink(wins, np.full(15, 20)).mean)
    assert worst_tenth(INTERVALS, users(wins, 20)).value == pytest.approx(
        (mean[0] + 0.5 * mean[1]) / 1.5
    )


def test_perfect_users_are_not_certain_and_few_have_no_tenth():
    found = worst_tenth(INTERVALS, users([20] * 10, 20))
    assert found.value == pytest.approx(1.0, abs=1e-4)
    assert 0.7 < found.interval.low < 0.95
    assert worst_tenth(INTERVALS, users([20] * 9, 20)) is None
    assert lowest_tenth(users([20] * 9, 20)).empty
    assert worst_user(INTERVALS, users([], 0)) is None


def test_the_worst_user_has_the_interval_of_their_own_pairs():
    table = pd.DataFrame({"wins": [5, 1, 3, 0], "ties": [0, 2, 0, 0], "losses": [0, 1, 3, 0]})
    found = worst_user(INTERVALS, table)
    # Two users are at one half; the one of more pairs. The last has none.
    exact = stats.binomtest(3, 6).proportion_ci(0.95, "exact")
    assert found.value == 0.5
    assert found.interval == pytest.approx((exact.low, exact.high))
