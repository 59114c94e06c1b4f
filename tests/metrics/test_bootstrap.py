"""The bootstrap against loops that follow its definition, and against known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prlhf.metrics.bootstrap import MAX_UNITS_FOR_MINIMUM, Bootstrap, ratio

SHARES = st.floats(0, 1, allow_nan=False)


def naive_interval(rows, statistic, *, replicates, level, seed):
    """Draw row numbers one by one, add up the rows drawn, take percentiles."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(replicates):
        sums = [0.0] * len(rows[0])
        for _ in range(len(rows)):
            for column, value in enumerate(rows[int(rng.integers(len(rows)))]):
                sums[column] += value
        found.append(statistic(sums))
    return np.quantile(found, [(1 - level) / 2, (1 + level) / 2])


def test_mean_has_the_distribution_of_the_naive_bootstrap():
    rng = np.random.default_rng(3)
    values = rng.beta(4, 2, 25)
    estimate = Bootstrap(seed=1, replicates=8000).mean(values)
    naive = naive_interval(
        [[v, 1.0] for v in values],
        lambda sums: sums[0] / sums[1],
        replicates=8000,
        level=0.95,
        seed=2,
    )
    assert estimate.value == pytest.approx(values.mean())
    # Two sets of random draws: equal up to the error of a quantile of 8000 draws.
    assert estimate.interval == pytest.approx(naive, abs=0.15 * values.std() / np.sqrt(25))


def test_ratio_keeps_texts_of_a_prompt_together():
    """Ten texts each for 12 prompts, all texts of a prompt alike: as uncertain as 12 texts."""
    rng = np.random.default_rng(5)
    values = rng.normal(50, 10, 12)
    bootstrap = Bootstrap(seed=0, replicates=4000)
    clustered = bootstrap.ratio(np.column_stack([10 * values, np.full(12, 10.0)]))
    single = bootstrap.mean(values)
    independent = bootstrap.mean(np.repeat(values, 10))
    assert clustered.value == pytest.approx(single.value)
    assert clustered.interval == pytest.approx(single.interval)
    width = clustered.interval.high - clustered.interval.low
    narrow = independent.interval.high - independent.interval.low
    assert width == pytest.approx(np.sqrt(10) * narrow, rel=0.15)


def test_ratio_of_unequal_clusters_has_the_distribution_of_the_naive_bootstrap():
    rng = np.random.default_rng(8)
    counts = rng.integers(1, 6, 20)
    rows = np.column_stack([rng.random(20) * counts, counts])
    estimate = Bootstrap(seed=4, replicates=8000).ratio(rows)
    naive = naive_interval(
        rows.tolist(), lambda sums: sums[0] / sums[1], replicates=8000, level=0.95, seed=9
    )
    assert estimate.value == pytest.approx(rows[:, 0].sum() / counts.sum())
    assert estimate.interval == pytest.approx(naive, abs=0.02)


def test_share_follows_the_binomial_distribution():
    """A mean over 50 ones and 50 zeros, drawn anew, is binomial(100, 1/2) / 100."""
    estimate = Bootstrap(seed=2, replicates=40_000, level=0.9).mean([1.0, 0.0] * 50)
    expected = stats.binom.ppf([0.05, 0.95], 100, 0.5) / 100
    assert estimate.value == 0.5
    assert estimate.interval == pytest.approx(expected, abs=0.0101)


def test_large_samples_approach_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    low, high = Bootstrap(seed=1, replicates=4000).mean(values).interval
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_minimum_has_the_distribution_of_drawing_each_users_pairs():
    losses, ties, wins = np.array([3, 1, 0]), np.array([0, 2, 1]), np.array([7, 7, 9])
    estimate = Bootstrap(seed=1, replicates=8000).minimum(losses, ties, wins)
    assert estimate.value == pytest.approx(0.7)
    rng = np.random.default_rng(2)
    users = [
        [0.0] * lost + [0.5] * tied + [1.0] * won
        for lost, tied, won in zip(losses, ties, wins, strict=True)
    ]
    drawn = [min(rng.choice(user, len(user)).mean() for user in users) for _ in range(8000)]
    expected = np.quantile(drawn, [0.025, 0.975])
    assert estimate.interval == pytest.approx(expected, abs=0.051)


def test_minimum_of_perfect_users_is_certain_and_users_without_pairs_are_ignored():
    estimate = Bootstrap(seed=0).minimum([0, 0, 0], [0, 0, 0], [5, 9, 0])
    assert estimate.value == 1.0
    assert estimate.interval == (1.0, 1.0)
    assert Bootstrap(seed=0).minimum([], [], []) is None
    assert Bootstrap(seed=0).minimum([0], [0], [0]) is None


def test_minimum_of_very_many_users_has_no_interval():
    many = np.ones(MAX_UNITS_FOR_MINIMUM + 1, dtype=int)
    estimate = Bootstrap(seed=0, replicates=100).minimum(many, 0 * many, many)
    assert estimate.value == 0.5
    assert estimate.interval is None


def test_a_million_users_cost_little():
    """Repeated values are drawn by count; 2000 replicates of a million users take no minutes."""
    values = np.random.default_rng(0).integers(0, 11, 1_000_000) / 10
    low, high = Bootstrap(seed=0, replicates=2000).mean(values).interval
    assert 0 < high - low < 0.002


def test_nothing_and_a_single_unit():
    bootstrap = Bootstrap(seed=0)
    assert bootstrap.mean([]) is None
    assert bootstrap.ratio(np.empty((0, 2))) is None
    assert bootstrap.mean([0.25]) == (0.25, None)
    assert bootstrap.ratio([[0.0, 0.0], [0.0, 0.0]]) is None


def test_interval_needs_half_of_the_replicates():
    """One unit of 40 has the thing that is divided by: most resamples of it have it."""
    rows = np.zeros((40, 2))
    rows[0] = 1.0
    assert Bootstrap(seed=0).ratio(rows).interval == (1.0, 1.0)
    assert Bootstrap(seed=0).statistic(
        rows, lambda sums: np.where(sums[:, 1] == 1.0, sums[:, 0], np.nan)
    ) == (1.0, None)


def test_ratio_is_nan_where_there_is_nothing_to_divide_by():
    np.testing.assert_array_equal(ratio(np.array([[1.0, 2.0], [1.0, 0.0]])), [0.5, np.nan])


@settings(max_examples=40, deadline=None)
@given(st.lists(SHARES, min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_interval_lies_within_the_data_and_does_not_depend_on_order(values, seed):
    bootstrap = Bootstrap(seed=seed, replicates=200)
    value, interval = bootstrap.mean(values)
    assert value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert bootstrap.mean(sorted(values)).interval == pytest.approx(interval)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=12), st.floats(-3, 3), st.floats(0.1, 5))
def test_interval_moves_with_the_data(counts, shift, scale):
    values = [count / 20 for count in counts]
    bootstrap = Bootstrap(seed=3, replicates=200)
    moved = bootstrap.mean([shift + scale * value for value in values])
    low, high = bootstrap.mean(values).interval
    assert moved.interval.low == pytest.approx(shift + scale * low, abs=1e-6)
    assert moved.interval.high == pytest.approx(shift + scale * high, abs=1e-6)


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(1).random(50)
    counts = np.random.default_rng(2).integers(1, 9, (3, 20))
    whole = Bootstrap(seed=9).mean(values), Bootstrap(seed=9).minimum(*counts)
    monkeypatch.setattr("prlhf.metrics.bootstrap._CHUNK", 500)
    chunked = Bootstrap(seed=9).mean(values), Bootstrap(seed=9).minimum(*counts)
    assert chunked == whole
    assert Bootstrap(seed=10).mean(values).interval != whole[0].interval
    assert sum(Bootstrap(seed=9, replicates=1001)._chunks(30)) == 1001


def test_wider_level_gives_a_wider_interval():
    values = np.random.default_rng(1).random(30)
    narrow = Bootstrap(seed=0, level=0.5).mean(values).interval
    wide = Bootstrap(seed=0, level=0.99).mean(values).interval
    assert wide.low < narrow.low < narrow.high < wide.high
