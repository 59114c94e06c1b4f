"""Intervals against textbook formulas and naive sums, and how often they hold the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prlhf.metrics.intervals import Intervals
from prlhf.report import headline

INTERVALS = Intervals()
SHARES = st.floats(0, 1, allow_nan=False)


def naive_variance(weights, residuals, one, two):
    """Two crossed factors, in float64 loops: (variance, degrees of freedom)."""
    influence = [w * r for w, r in zip(weights, residuals, strict=True)]

    def squares(labels):
        sums = {}
        for label, value in zip(labels, influence, strict=True):
            sums[label] = sums.get(label, 0.0) + value
        return sum(value**2 for value in sums.values()), len(sums)

    parts = []
    for labels in (one, two):
        total, n = squares(labels)
        parts.append((total * n / (n - 1), n - 1))
    both, _ = squares(list(zip(one, two, strict=True)))
    variance = max(parts[0][0] + parts[1][0] - both, parts[0][0], parts[1][0])
    spread = sum(part**2 / freedom for part, freedom in parts)
    return variance, max(variance**2 / spread, min(freedom for _, freedom in parts))


def test_a_mean_of_independent_rows_has_students_interval():
    values = np.random.default_rng(3).normal(50, 10, 12)
    estimate = INTERVALS.mean(values, np.arange(12))
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.interval == pytest.approx((values.mean() - half, values.mean() + half))
    assert estimate.freedom == pytest.approx(11)


def test_an_amount_has_a_students_interval_of_its_logarithm():
    values = np.array([10.0, 12.0, 400.0, 30.0, 18.0])
    estimate = INTERVALS.amount(values, np.arange(5))
    error = stats.t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5) / values.mean()
    low, high = estimate.interval
    assert estimate.value == pytest.approx(94)
    assert np.log([low, high]) == pytest.approx(np.log(94) + np.array([-error, error]))
    # The symmetric interval of the same mean is (-120, 308) words.
    assert INTERVALS.mean(values, np.arange(5)).interval.low < 0 < low
    assert INTERVALS.amount(np.zeros(5), np.arange(5)).interval == (0, 0)


def test_rows_of_a_prompt_count_together():
    """Ten texts each for 12 prompts, all texts of a prompt alike: as uncertain as 12 texts."""
    values, prompts = np.random.default_rng(5).normal(50, 10, 12), np.arange(12)
    single = INTERVALS.mean(values, prompts)
    clustered = INTERVALS.mean(np.repeat(values, 10), np.repeat(prompts, 10))
    assert clustered.interval == pytest.approx(single.interval)


def test_two_crossed_factors_against_naive_sums():
    rng = np.random.default_rng(8)
    users, prompts = rng.integers(0, 5, 60), rng.integers(0, 9, 60)
    values, weights = rng.normal(0, 1, 60) + users + prompts, rng.random(60)
    estimate = INTERVALS.mean(values, users, prompts, weights=weights)
    shares = weights / weights.sum()
    mean = shares @ values
    variance, freedom = naive_variance(shares, values - mean, users, prompts)
    assert estimate.value == pytest.approx(mean)
    assert (estimate.error, estimate.freedom) == pytest.approx((np.sqrt(variance), freedom))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert estimate.interval == pytest.approx((mean - half, mean + half))


def test_a_share_of_independent_pairs_has_the_exact_interval():
    found = INTERVALS.share([1.0] * 30 + [0.0] * 10, np.arange(40)).interval
    exact = stats.binomtest(30, 40).proportion_ci(0.95, "exact")
    # Student's quantiles for 39 degrees of freedom instead of the normal ones.
    assert found == pytest.approx((exact.low, exact.high), abs=0.01)
    assert found.low < exact.low < exact.high < found.high


def test_users_who_are_all_alike_prove_no_certainty():
    """Three users, twelve right predictions each: 36 pairs, and two degrees of freedom."""
    users = np.repeat(np.arange(3), 12)
    low, high = INTERVALS.share(np.ones(36), users).interval
    size = 36 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 2)) ** 2
    assert (low, high) == (pytest.approx(0.025 ** (1 / size)), 1.0)
    assert 0.5 < low < 0.7
    # Where each value is a mean of twelve pairs, the same.
    means = INTERVALS.share(np.ones(3), np.arange(3), sizes=np.full(3, 12)).interval
    assert means == pytest.approx((low, high))
    # Nor do methods that never differ on 36 pairs.
    ends = INTERVALS.difference(np.zeros(36), users).interval
    assert ends.low == -ends.high
    assert 0.05 < ends.high < 0.2


def test_a_difference_has_the_noise_of_its_pairs_at_least():
    """All users gain the same by accident: two of ten pairs each."""
    gains, users = np.tile([1.0] * 3 + [-1.0] + [0.0] * 6, 5), np.repeat(np.arange(5), 10)
    estimate = INTERVALS.difference(gains, users)
    own = (50 * (0.4 - 0.2**2) + 0.5) / 51
    assert estimate.error == pytest.approx(np.sqrt(own / 50))
    assert estimate.value == pytest.approx(0.2)


def test_given_users_keep_their_place():
    """Users of opposed tastes: sure of these, and of no others."""
    rng = np.random.default_rng(2)
    users, prompts = np.repeat(np.arange(6), 20), np.tile(np.arange(20), 6)
    gains = np.where(users < 2, 1.0, 0.0) * (rng.random(120) < 0.9)
    others = INTERVALS.difference(gains, users, prompts)
    same = INTERVALS.difference(gains, prompts, given=users)
    assert same.value == others.value
    assert others.interval.low < 0 < same.interval.low
    stretched = [
        np.sqrt(20 / 19) * (gain - gains[users == user].mean())
        for gain, user in zip(gains, users, strict=True)
    ]
    sums = np.bincount(prompts, weights=stretched) / 120
    by_prompt = (sums**2).sum() * 20 / 19
    by_pair = (np.square(stretched).sum() + 0.5) / 121 / 120
    assert same.error == pytest.approx(np.sqrt(max(by_prompt, by_pair)))


def test_a_user_with_one_pair_tells_nothing_of_their_own_spread():
    gains, users = np.array([1.0, 1.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 2, 2])
    estimate = INTERVALS.difference(
        gains, np.arange(5), weights=[1, 0.5, 0.5, 0.5, 0.5], given=users
    )
    weights = np.array([1, 0.5, 0.5, 0.5, 0.5]) / 3
    residuals = [1 - estimate.value, np.sqrt(2) / 2, -np.sqrt(2) / 2, 0, 0]
    by_row = ((weights * residuals) ** 2).sum() * 5 / 4
    size = 1 / (weights**2).sum()
    by_pair = (size * weights @ np.square(residuals) + 0.5) / (size + 1) / size
    assert estimate.error**2 == pytest.approx(max(by_row, by_pair))


def test_a_ratio_has_the_interval_of_the_delta_method():
    rng = np.random.default_rng(1)
    short, long = rng.normal(20, 3, 15), rng.normal(60, 9, 15)
    rows = np.column_stack([short, long])
    estimate = INTERVALS.statistic(rows, lambda sums: sums[:, 0] / sums[:, 1], np.arange(15))
    value = short.sum() / long.sum()
    linear = (short - value * long) / long.sum()
    assert estimate.value == pytest.approx(value)
    assert estimate.error == pytest.approx(np.sqrt((linear**2).sum() * 15 / 14), rel=1e-6)
    assert INTERVALS.statistic(np.zeros((3, 2)), ratio_or_nan, np.arange(3)) is None
    assert INTERVALS.statistic(np.empty((0, 2)), ratio_or_nan) is None


def ratio_or_nan(sums):
    with np.errstate(invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def test_nothing_one_user_and_what_is_not_known():
    assert INTERVALS.mean([], []) is None
    assert INTERVALS.mean([np.nan], [0]) is None
    assert INTERVALS.share([0.25, 0.75], ["ann", "ann"], ["p1", "p2"]) == (0.5, None, None, None)
    assert INTERVALS.difference([0.25], [0]).interval is None
    # One prompt says nothing of others; two users do.
    assert INTERVALS.mean([1.0, 3.0, np.nan], ["ann", "bob", "cas"], ["p", "p", "p"]).freedom == 1
    assert INTERVALS.mean([1.0, 3.0], ["ann", "bob"]).detectable(0.95) == pytest.approx(
        stats.t.ppf(0.975, 1) + stats.t.ppf(0.8, 1)
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHARES, st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_intervals_of_shares_hold_them_and_do_not_depend_on_order(rows):
    found = INTERVALS.share(*zip(*rows, strict=True))
    again = INTERVALS.share(*zip(*sorted(rows), strict=True))
    assert found.value == pytest.approx(np.mean([value for value, _, _ in rows]))
    if found.interval is not None:
        assert 0.0 <= found.interval.low <= found.value <= found.interval.high <= 1.0
        assert again.interval == pytest.approx(found.interval, abs=1e-6)


def test_wider_level_gives_a_wider_interval():
    values, users = np.random.default_rng(1).random(30), np.arange(30)
    narrow, wide = Intervals(0.5).share(values, users), Intervals(0.99).share(values, users)
    assert wide.interval.low < narrow.interval.low < narrow.interval.high < wide.interval.high


def test_a_million_rows_are_a_matter_of_sums():
    rng = np.random.default_rng(0)
    users, prompts = rng.integers(0, 100_000, 1_000_000), rng.integers(0, 5_000, 1_000_000)
    low, high = INTERVALS.share(rng.random(1_000_000) < 0.8, users, prompts).interval
    assert 0.001 < high - low < 0.003


# -- how often they hold the truth ---------------------------------------------------------------


def drawn(rng, count, pairs=12, prompts=40):
    """Labels of `count` users' pairs, each about prompts of their own choice."""
    users = np.repeat(np.arange(count), pairs)
    order = np.argsort(rng.random((count, prompts)), axis=1)
    return users, order[:, :pairs].ravel()


@pytest.mark.parametrize("users", [2, 3, 4, 6, 10, 20])
@pytest.mark.parametrize(("a", "b"), [(8.0, 2.5), (2.0, 2.0), (30.0, 1.0)])
def test_intervals_hold_the_accuracy_of_the_population(users, a, b):
    """Accuracies differ by user (all alike at 0.97 to all over the place), and with the prompt."""
    rng = np.random.default_rng(users)
    held = 0
    for _ in range(250):
        who, about = drawn(rng, users)
        true = rng.beta(a, b, users)[who]
        hard = 0.4 * rng.choice([-1.0, 1.0], 40)[about] * true * (1.0 - true)
        low, high = INTERVALS.share(rng.random(len(who)) < true + hard, who, about).interval
        held += low <= a / (a + b) <= high
    assert held / 250 >= 0.92


def verdicts(users, runs, spread, shift=0.0):
    """What the headline says about two methods that differ by `shift` on average."""
    rng = np.random.default_rng([users, runs])
    found = []
    for _ in range(runs):
        who, about = drawn(rng, users)
        base = rng.beta(8.0, 4.0, users).clip(0.3, 0.8)
        gain = shift + spread * rng.choice([-1.0, 1.0], users)
        luck, other = rng.random((2, len(who)))
        # Methods mostly agree.
        other = np.where(rng.random(len(who)) < 0.7, luck, other)
        gains = (other < (base + gain)[who]) * 1.0 - (luck < base[who])
        ends = INTERVALS.difference(gains, who, about)
        same = INTERVALS.difference(gains, about, given=who)
        spreads = ends.interval._asdict() | {"same_users": same.interval._asdict()}
        metrics = {
            "accuracy": {"pdpo": {"macro": 0.5}},
            "accuracy_gain": {"pdpo_vs_dpo": ends.value},
            "interval": {"accuracy_gain": {"pdpo_vs_dpo": spreads}},
            "counts": {"users": {"seen": users}, "units": 40},
        }
        answer = headline.write(metrics, ["pdpo"], "pdpo", "dpo", margin=0.0)
        found.append((answer.verdict, same.value, gain.mean()))
    return found


@pytest.mark.parametrize("users", [3, 8, 20])
def test_two_equally_good_methods_are_rarely_told_apart(users):
    found = [verdict for verdict, *_ in verdicts(users, 300, spread=0.0)]
    assert sum(verdict != "unclear" for verdict in found) / 300 <= 0.06


def test_what_holds_for_no_population_is_rarely_said_of_others():
    """Half of all people gain what the other half lose: true of these users, not of others."""
    found = [verdict for verdict, *_ in verdicts(12, 300, spread=0.15)]
    assert sum(verdict in ("better", "worse") for verdict in found) / 300 <= 0.06


def test_a_real_difference_is_found_and_below_eight_users_only_of_these():
    assert all(verdict == "better" for verdict, *_ in verdicts(20, 40, spread=0.0, shift=0.2))
    few = {verdict for verdict, *_ in verdicts(6, 40, spread=0.0, shift=0.2)}
    assert few <= {"better_here", "unclear"}


def test_a_detectable_difference_is_shown_as_often_as_promised():
    rng = np.random.default_rng(0)
    sizes = [INTERVALS.mean(rng.normal(0, 1, 15), range(15)).detectable(0.95) for _ in range(400)]
    size = np.sqrt(np.mean(np.square(sizes)))
    shown = [
        INTERVALS.mean(rng.normal(size, 1, 15), range(15)).interval.low > 0 for _ in range(400)
    ]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.05)


def test_every_draw_is_as_likely():
    """Two users, two prompts, written out: the variance of the crossed mean is never below that of
    either factor alone."""
    for values in itertools.product([0.0, 0.5, 1.0], repeat=4):
        users, prompts = [0, 0, 1, 1], [0, 1, 0, 1]
        both = INTERVALS.mean(values, users, prompts).error
        assert both >= INTERVALS.mean(values, users).error - 1e-12
        assert both >= INTERVALS.mean(values, prompts).error - 1e-12
