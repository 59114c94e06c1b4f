"""Who a person is, as far as their choices tell: one posterior for trained people and newcomers.

People differ along q directions, in which the population has mean 0 and covariance 1:

    margin m = offset + direction . s        s ~ N(0, 1)        P(chosen) = sigmoid(m)

The posterior is Laplace's approximation about the mode, found by Newton's method for many people at
once. A choice is predicted with what is not known of the person taken into account.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.sparse import csr_array
from scipy.special import expit

from prlhf.people.features import Floats, Integers

STEPS = 50
"""Newton steps at most."""

HALVINGS = 30
"""Times that a step is halved at most."""

TOLERANCE = 1e-8
"""Change of a mode that ends the search."""

CHUNK = 2**17
"""Pairs whose outer products are in memory at the same time."""


@dataclass(frozen=True)
class Evidence:
    """What pairs say of their users.

    Attributes:
        offsets: margins that all users share, float64 [P].
        directions: what a user's own part of the margin is along, float64 [P, q].
        users: users' positions, from 0, int64 [P].
        weights: how much pairs count, float64 [P].
    """

    offsets: Floats
    directions: Floats
    users: Integers
    weights: Floats

    def scaled(self, factor: float) -> Self:
        """For people who differ `factor` times as much."""
        return type(self)(self.offsets, factor * self.directions, self.users, self.weights)

    def __getitem__(self, rows: Integers) -> Self:
        return type(self)(
            self.offsets[rows], self.directions[rows], self.users[rows], self.weights[rows]
        )

    def margins(self, means: Floats) -> Floats:
        """Of the pairs, with users at `means`, float64 [N, q]: [P]."""
        own = np.einsum("pq,pq->p", self.directions, means[self.users])
        return self.offsets + own

    def hessians(self, means: Floats, precision: float) -> Floats:
        """Those of each user's negative log-posterior, float64 [N, q, q]."""
        count, q = means.shape
        chance = expit(self.margins(means))
        outer = np.einsum("pq,pr->pqr", self.directions, self.directions).reshape(-1, q * q)
        places = np.arange(len(self.users))
        curvature = (self.weights * chance * (1 - chance), (self.users, places))
        sums = csr_array(curvature, shape=(count, len(self.users))) @ outer
        return sums.reshape(count, q, q) + precision * np.eye(q)


@dataclass(frozen=True)
class Posterior:
    """Where people are.

    Attributes:
        means: float64 [N, q].
        covariances: float64 [N, q, q].
    """

    means: Floats
    covariances: Floats

    def log_odds(self, evidence: Evidence) -> Floats:
        """Log-odds of the pairs' first responses for their users, float64 [P].

        The margin is shrunk by its uncertainty, as in MacKay's approximation of the integral.
        """
        margins, spread = evidence.margins(self.means), self.covariances[evidence.users]
        variances = np.einsum("pq,pqr,pr->p", evidence.directions, spread, evidence.directions)
        return margins / np.sqrt(1 + np.pi * variances / 8)


def posterior(evidence: Evidence, count: int) -> Posterior:
    """The posterior of `count` people; of those without a pair it is the prior."""
    order = np.argsort(evidence.users, kind="stable")
    ends = np.searchsorted(evidence.users[order], np.arange(count + 1))
    q = evidence.directions.shape[1]
    means, covariances = np.zeros((count, q)), np.empty((count, q, q))
    start = 0
    while start < count:
        # Whole people, as many as a chunk of pairs holds.
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + CHUNK, "right")) - 1)
        own = evidence[order[ends[start] : ends[stop]]]
        own = replace(own, users=own.users - start)
        means[start:stop] = _modes(own, stop - start)
        covariances[start:stop] = np.linalg.inv(own.hessians(means[start:stop], 1.0))
        start = stop
    return Posterior(means, covariances)


def _modes(evidence: Evidence, count: int) -> Floats:
    """Where each person's posterior is highest, float64 [count, q], by Newton's method."""
    users, places = evidence.users, np.arange(len(evidence.users))
    owners = csr_array((evidence.weights, (users, places)), shape=(count, len(users)))

    def losses(means: Floats) -> Floats:
        prior = np.einsum("nq,nq->n", means, means) / 2
        return owners @ np.logaddexp(0, -evidence.margins(means)) + prior

    means = np.zeros((count, evidence.directions.shape[1]))
    value = losses(means)
    for _ in range(STEPS):
        pulls = expit(-evidence.margins(means))[:, None] * evidence.directions
        gradients = means - owners @ pulls
        steps = np.linalg.solve(evidence.hessians(means, 1.0), gradients[..., None])[..., 0]
        # Newton's step can be too long where choices are nearly certain: halve it.
        for _ in range(HALVINGS):
            worse = losses(means - steps) > value + 1e-12 * np.abs(value)
            if not worse.any():
                break
            steps[worse] /= 2
        else:
            steps[worse] = 0
        means = means - steps
        value = losses(means)
        if np.abs(steps).max(initial=0) < TOLERANCE:
            break
    return means
