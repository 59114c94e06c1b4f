"""Is there anything to gain by knowing who chooses? Cross-validation of the hierarchical reward.

Every figure is of pairs that their model has not seen, nor any other pair of the same unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import norm, t

from prlhf.data import agreement
from prlhf.people.archetypes import fit_archetypes, place
from prlhf.people.features import Examples, Floats
from prlhf.people.fitting import Design, fit_hierarchy, fit_shared
from prlhf.people.folds import FoldRows
from prlhf.people.posterior import Evidence, Posterior, posterior

TAUS = (0.1, 1.0, 10.0, 100.0)
"""Ridges of the shared direction that are tried."""

PENALTIES = tuple(10.0 ** (step / 2) for step in range(10, -3, -1))
"""Penalties of the shared direction that are tried, the strongest first: 1e5 to 0.1."""

SPREADS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""c: how much people differ in comparison with what the fit says of its own."""

NEGLIGIBLE = 0.05
"""Share of the gain that is not worth more archetypes."""


class Settings(NamedTuple):
    """How a model is fitted: see `fit_hierarchy`."""

    tau: float
    penalty: float
    dimensions: int
    strength: float


@dataclass(frozen=True)
class Population:
    """A reward in which people are N(0, 1) on each of q directions.

    Attributes:
        shared: the generic user's direction on the axes, float64 [r].
        basis: those in which people differ, float64 [r, q].
    """

    shared: Floats
    basis: Floats

    @classmethod
    def alike(cls, shared: Floats, dimensions: int) -> Self:
        """People who do not differ."""
        return cls(shared, np.zeros((len(shared), dimensions)))

    def scaled(self, spread: float) -> Self:
        """With people's covariance times `spread`."""
        return type(self)(self.shared, spread**0.5 * self.basis)

    def evidence(self, design: Design) -> Evidence:
        """What pairs say of their users."""
        columns = design.differences(np.column_stack([self.shared, self.basis]))
        return Evidence(columns[:, 0], columns[:, 1:], design.users, design.weights)


def learn(design: Design, settings: Settings, rng: np.random.Generator) -> Population:
    """Fit the model, and put the population at 0 with covariance 1.

    Its mean is that of the fit's modes, its covariance theirs and, on average, what is not known
    of each.
    """
    shared = fit_shared(design, settings.tau, settings.penalty)
    found = fit_hierarchy(design, shared, **settings._asdict(), rng=rng)
    evidence = Population(found.shared, found.basis).evidence(design)
    known = np.bincount(design.users, minlength=len(found.modes)) > 0
    unknown = np.linalg.inv(evidence.hessians(found.modes, found.gamma)[known]).mean(0)
    modes = found.modes[known]
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(modes.T, bias=True)) + unknown)
    spread = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1]
    return Population(found.shared + found.basis @ modes.mean(0), found.basis @ spread)


def tune_shared(design: Design, folds: Sequence[FoldRows]) -> tuple[float, float]:
    """The ridge and penalty by which one direction for all predicts best: tau, lambda_0."""
    parts = [(design[fold.train], design[fold.test]) for fold in folds]
    tried: dict[tuple[float, float], float] = {}
    for tau in TAUS:
        fits = [np.zeros(len(design.axes.variances))] * len(folds)
        losses: list[float] = []
        for penalty in PENALTIES:
            loss = 0.0
            for number, (train, test) in enumerate(parts):
                fits[number] = fit_shared(train, tau, penalty, fits[number])
                loss += float(test.weights @ _losses(test.differences(fits[number])))
            tried[tau, penalty] = loss
            losses.append(loss)
            # Along the path there is one minimum.
            if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3]:
                break
    return min(tried, key=lambda key: tried[key])


class Predicted(NamedTuple):
    """Pairs predicted by what was fitted to others.

    Attributes:
        spread: c of `SPREADS` by which people are predicted best who are in no fit.
        rows: which pairs are predicted, int64 [n].
        shared: log-odds of the chosen responses by one direction for all, float64 [n]; the generic
            user's, or one fitted alone, whichever predicts better.
        personal: by each user's posterior.
        mixed: by each user as a mixture of K archetypes, by K.
    """

    spread: float
    rows: NDArray[np.int64]
    shared: Floats
    personal: Floats
    mixed: Mapping[int, Floats]


def predict(
    design: Design,
    folds: Sequence[FoldRows],
    settings: Settings,
    counts: Sequence[int],
    seed: int,
    rng: np.random.Generator,
) -> Predicted:
    """Predict every fold's pairs by what is fitted to the others.

    Each fold's fit also leaves out another part of the people, if there are enough: placed by their
    pairs among those learned from, as newcomers are, they say how much people differ. The figures
    are of the others.

    Args:
        design: the pairs.
        folds: of the pairs.
        settings: of the fits.
        counts: numbers of archetypes to try.
        seed: of the archetypes.
        rng: of the fits.
    """
    users = design.owners.shape[0]
    part = _left_out(design, folds, rng)
    fits = []
    for number, fold in enumerate(folds):
        new = part[design.users] == number
        known = design[fold.train[~new[fold.train]]]
        population = learn(known, settings, rng)
        shared = fit_shared(known, settings.tau, settings.penalty)
        given, asked = (population.evidence(design[rows]) for rows in fold)
        fits.append(_Fit(given, asked, new[fold.test], design[fold.test].differences(shared)))

    spread = 1.0
    rows = np.concatenate([fold.test[fit.new] for fold, fit in zip(folds, fits, strict=True)])
    if len(rows):
        odds = np.array([_joined(fit.odds(c, users)[fit.new] for fit in fits) for c in SPREADS])
        spread = SPREADS[int(_by_user(design, rows, _losses(odds)).mean(1).argmin())]

    rows = np.concatenate([fold.test[~fit.new] for fold, fit in zip(folds, fits, strict=True)])
    personal = _joined(fit.odds(spread, users)[~fit.new] for fit in fits)
    mixed = {
        count: _joined(fit.odds(spread, users, count, seed)[~fit.new] for fit in fits)
        for count in counts
    }
    # A better direction for all is no reason to tell people apart.
    alike = np.stack(
        [
            _joined(fit.shared[~fit.new] for fit in fits),
            _joined(fit.asked.offsets[~fit.new] for fit in fits),
        ]
    )
    shared = alike[_by_user(design, rows, _losses(alike)).mean(1).argmin()]
    return Predicted(spread, rows, shared, personal, mixed)


class _Fit(NamedTuple):
    """What was fitted without a fold.

    Attributes:
        given: what pairs that it may learn from say of their users.
        asked: the fold's pairs.
        new: which of them are of users left out of the fit, bool.
        shared: their log-odds by one direction for all.
    """

    given: Evidence
    asked: Evidence
    new: NDArray[np.bool_]
    shared: Floats

    def odds(self, spread: float, users: int, count: int | None = None, seed: int = 0) -> Floats:
        """Log-odds of the fold's pairs by users' posteriors, or mixtures of `count` archetypes."""
        people = posterior(self.given.scaled(spread**0.5), users)
        if count is not None:
            centres = fit_archetypes(people, count, seed)
            means = softmax(place(people, centres), 1) @ centres
            people = Posterior(means, people.covariances)
        return people.log_odds(self.asked.scaled(spread**0.5))


def _left_out(
    design: Design, folds: Sequence[FoldRows], rng: np.random.Generator
) -> NDArray[np.int64]:
    """The fold that each user is left out of, int64 [N]; -1 for none, where users are too few."""
    users = design.owners.shape[0]
    part = rng.permutation(users) % len(folds)
    kept = [part[design.users] != number for number in range(len(folds))]
    enough = users >= 2 * len(folds) and all(
        bool(own[rows].any()) for own, fold in zip(kept, folds, strict=True) for rows in fold
    )
    return part if enough else np.full(users, -1)


def gain(design: Design, predicted: Predicted) -> dict[str, Any]:
    """How much better people are predicted one by one: means over users, with standard errors."""
    odds = np.stack([predicted.personal, predicted.shared])
    losses = _by_user(design, predicted.rows, _losses(odds))
    right = _by_user(design, predicted.rows, agreement(odds))
    return {
        "users": losses.shape[1],
        "pairs": len(predicted.rows),
        "log_loss": _compared(losses, losses[1] - losses[0]),
        "accuracy": _compared(right, right[0] - right[1]),
    }


def is_gain(
    figures: Mapping[str, float | None],
    users: int,
    control: Mapping[str, float | None] | None = None,
) -> bool:
    """Whether a paired difference between means over users is above its standard error.

    With few users it must be so much above as makes chance alone as rare: the quantile of Student's
    t at the probability that a normal variable has below one standard error. What is gained with
    users shuffled, too, is no one's own (it may be what the units have in common), and must be
    exceeded.
    """
    difference, error = figures["difference"], figures["se"]
    if difference is None or error is None:
        return False
    if control is not None:
        difference -= max(control["difference"] or 0.0, 0.0)
        error = float(np.hypot(error, control["se"] or 0.0))
    return difference > error * float(t.ppf(norm.cdf(1), users - 1))


def fewest(design: Design, predicted: Predicted) -> tuple[int, dict[str, float]]:
    """The smallest K that is good enough, and the loss of each.

    Its loss is within a standard error of the best, or within `NEGLIGIBLE` of what the best gains.
    """
    counts = sorted(predicted.mixed)
    odds = np.stack([*(predicted.mixed[count] for count in counts), predicted.shared])
    *losses, shared = _by_user(design, predicted.rows, _losses(odds))
    means = np.mean(losses, 1)
    gaps = np.array(losses) - losses[int(means.argmin())]
    errors = gaps.std(1) / np.sqrt(len(shared))
    enough = np.maximum(errors, NEGLIGIBLE * (shared.mean() - means.min()))
    chosen = int(np.flatnonzero(gaps.mean(1) <= enough)[0])
    return counts[chosen], dict(zip(map(str, counts), means.tolist(), strict=True))


def shuffled_within(examples: Examples, rng: np.random.Generator) -> Examples:
    """The pairs with users shuffled within each unit, where there is nothing personal left.

    Units that one user alone has judged are shuffled with each other.
    """
    _, unit = np.unique(np.sort(examples.units, 1), axis=0, return_inverse=True)
    unit = unit.ravel()
    owners = np.unique(np.stack([unit, examples.users]), axis=1)[0]
    unit = np.where(np.bincount(owners)[unit] > 1, unit, -1)
    users = np.empty_like(examples.users)
    order = np.argsort(unit, kind="stable")
    users[order] = examples.users[np.lexsort([rng.random(len(unit)), unit])]
    return replace(examples, users=users)


def _joined(parts: Iterable[Floats]) -> Floats:
    return np.concatenate(list(parts))


def _losses(log_odds: Floats) -> Floats:
    return np.logaddexp(0, -log_odds)


def _by_user(design: Design, rows: NDArray[np.int64], values: Floats) -> Floats:
    """Each user's weighted mean over some pairs, [..., n] to [..., users with any]."""
    users, weights = design.users[rows], design.weights[rows]
    total = np.bincount(users, weights)
    seen = np.flatnonzero(total)
    return np.stack([np.bincount(users, weights * row)[seen] / total[seen] for row in values])


def _compared(values: Floats, difference: Floats) -> dict[str, float | None]:
    count = len(difference)
    personal, shared = values.mean(1).tolist()
    return {
        "personal": personal,
        "shared": shared,
        "difference": float(difference.mean()),
        "se": float(difference.std(ddof=1) / count**0.5) if count > 1 else None,
    }
