"""People as mixtures of a few archetypes: `s_u ~ sum_k p_uk c_k`, p_u on the simplex.

Archetypes are themselves averages of people, and fitted in the metric of the posterior's precision:
what is not known of a person costs nothing. They are what P-DPO's clusters start from.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from prlhf.people.features import Floats, Integers
from prlhf.people.posterior import Posterior

SMOOTHING = 0.1
"""Share of every mixture that is spread evenly, so that no weight is out of a gradient's reach."""

PEOPLE = 300
"""People at most that archetypes are fitted to."""

STARTS = 4
"""Choices of people that the fit starts from."""

STEPS = 150
"""Steps of the fit, at most."""

PROJECTIONS = 2000
"""Steps to the nearest mixture, at most."""


def fit_archetypes(people: Posterior, count: int, seed: int) -> Floats:
    """Archetypes c_k, the one with most people first: float64 [K, q].

    Args:
        people: where people are.
        count: K, at most the number of people.
        seed: of the clusterings that the fit starts from.
    """
    if count == 1:
        return np.zeros((1, people.means.shape[1]))
    sample = people
    if len(people.means) > PEOPLE:
        chosen = np.linspace(0, len(people.means) - 1, PEOPLE).astype(np.int64)
        sample = Posterior(people.means[chosen], people.covariances[chosen])
    points = sample.means
    precisions = np.linalg.inv(sample.covariances).astype(np.float64)
    starts = _starts(points, precisions, count, seed)
    fits = [_fit(points, precisions, labels, count) for labels in starts]
    inner = min(fits, key=lambda fit: fit[0])[1]
    sizes = np.bincount(_mixtures(people, inner).argmax(1), minlength=count)
    inner = inner[np.argsort(-sizes, kind="stable")]
    # Moved apart, so that smoothed mixtures of these are what mixtures of those are.
    middle = inner.mean(0)
    return middle + (inner - middle) / (1 - SMOOTHING)


def place(people: Posterior, centres: Floats) -> Floats:
    """Logits of each person's mixture of archetypes, of mean 0: float64 [N, K].

    The mixture is the nearest in the metric of the posterior, then smoothed.
    """
    middle = centres.mean(0)
    mixture = _mixtures(people, middle + (1 - SMOOTHING) * (centres - middle))
    found = np.log((1 - SMOOTHING) * mixture + SMOOTHING / len(centres))
    return found - found.mean(1, keepdims=True)


def _mixtures(people: Posterior, centres: Floats) -> Floats:
    """Each person as a mixture of points, nearest in the metric of the posterior: [N, K].

    A quadratic programme on the simplex for each person, by projected gradients with momentum.
    """
    along = np.linalg.solve(people.covariances, centres.T[None])
    quadratic = np.einsum("kq,nqj->nkj", centres, along)
    linear = np.einsum("nq,nqk->nk", people.means, along)
    step = 1 / np.maximum(np.abs(quadratic).sum(2).max(1), 1e-12)[:, None]
    current = np.full(linear.shape, 1 / len(centres))
    ahead, momentum = current, 1.0
    for _ in range(PROJECTIONS):
        slope = np.einsum("nkj,nj->nk", quadratic, ahead) - linear
        new = _on_simplex(ahead - step * slope)
        # A step uphill ends the momentum.
        if np.vdot(ahead - new, new - current) > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - current)
        moved, current, momentum = np.abs(new - current).max(initial=0), new, following
        if moved < 1e-9:
            break
    return current


def _starts(points: Floats, precisions: Floats, count: int, seed: int) -> list[Integers]:
    """The nearest of some people who are far apart, for each person: a few such labels, int64 [N].

    The first are furthest apart, the others drawn as k-means++ draws its centres.
    """
    # In coordinates in which the average person is equally well known in all directions.
    values, vectors = np.linalg.eigh(precisions.mean(0))
    whitened = points @ (vectors * np.sqrt(values))
    rng = np.random.default_rng(seed)
    found = []
    for start in range(STARTS):
        picked = whitened.mean(0)[None]
        for _ in range(count):
            away = ((whitened[:, None] - picked) ** 2).sum(2).min(1)
            chance = away / away.sum() if away.any() else np.full(len(away), 1 / len(away))
            new = rng.choice(len(away), p=chance) if start else away.argmax()
            picked = np.concatenate([picked, whitened[None, new]])
        found.append(((whitened[:, None] - picked[1:]) ** 2).sum(2).argmin(1))
    return found


def _fit(points: Floats, precisions: Floats, labels: Integers, count: int) -> tuple[float, Floats]:
    """The loss and archetypes that a start leads to; both mixtures and averages by softmax."""
    people = len(points)
    member = labels[:, None] == np.arange(count)
    size = people * count

    def unpack(flat: Floats) -> tuple[Floats, Floats]:
        mixture, average = flat.reshape(2, people, count)
        return softmax(mixture, 1), softmax(average, 0)

    def objective(flat: Floats) -> tuple[float, Floats]:
        mixture, average = unpack(flat)
        centres = average.T @ points
        gaps = mixture @ centres - points
        pulls = np.einsum("nqr,nr->nq", precisions, gaps)
        value = np.vdot(gaps, pulls) / 2
        of_mixture = pulls @ centres.T
        of_average = points @ (pulls.T @ mixture)
        return float(value), np.concatenate(
            [
                (mixture * (of_mixture - (mixture * of_mixture).sum(1, keepdims=True))).ravel(),
                (average * (of_average - (average * of_average).sum(0, keepdims=True))).ravel(),
            ]
        )

    start = np.concatenate([2.0 * member.ravel(), (6.0 * member).ravel()])
    bounds = [(-12.0, 12.0)] * (2 * size)
    options = {"maxiter": STEPS, "ftol": 1e-7, "maxcor": 20}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return float(found.fun), unpack(found.x)[1].T @ points


def _on_simplex(points: Floats) -> Floats:
    """The nearest points with no negative entry and sum 1 (Duchi et al., 2008): [N, K]."""
    falling = -np.sort(-points, axis=1)
    excess = (falling.cumsum(1) - 1) / np.arange(1, points.shape[1] + 1)
    last = (falling > excess).sum(1) - 1
    return np.maximum(points - excess[np.arange(len(points)), last][:, None], 0)
