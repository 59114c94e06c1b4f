"""Fits of the hierarchical reward: one direction for all, and a few in which users differ.

    margin   m = z . mu + (z_2 B) . s_u              P(chosen) = sigmoid(m)
    minimise sum softplus(-m) + lambda_0/2 |mu|^2 + gamma/2 (|B|^2 + |s|^2)

where z and z_2 are a pair's feature differences, whitened with different ridges. The last term is
gamma times the nuclear norm of the matrix `B s'`: it decides how many directions there are, and
`gamma` is how far chance alone would carry them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, svds
from scipy.special import expit

from prlhf.people.features import Axes, Examples, Floats, Integers

TAU_2 = 1.0
"""Ridge of the whitening in which users differ."""

NULL_DRAWS = 4
"""Draws of labels behind `gamma`."""

LEAST = 1e-6
"""The least `gamma`, for choices between texts that do not differ."""

SMALL = 64
"""Users or axes up to which all singular values are computed."""


@dataclass(frozen=True)
class Design:
    """Pairs on principal axes.

    Attributes:
        axes: of the pairs.
        scores: texts along the axes, float64 [T, r].
        pairs: which differences of texts the pairs are, [P, T].
        owners: which pairs are whose, [N, P].
        users: users' positions, from 0, int64 [P].
        weights: how much the pairs count, float64 [P].
    """

    axes: Axes
    scores: Floats
    pairs: csr_array
    owners: csr_array
    users: Integers
    weights: Floats

    @classmethod
    def of(cls, examples: Examples, axes: Axes, count: int) -> Self:
        """Examples whose users' numbers are 0 to `count` - 1."""
        scores, pairs = examples.project(axes.vectors)
        owners = _owners(examples.users, count)
        return cls(axes, scores, pairs, owners, examples.users, examples.weights)

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, rows: Integers) -> Self:
        """Some of the pairs, of the same users."""
        return type(self)(
            self.axes,
            self.scores,
            self.pairs[rows],
            _owners(self.users[rows], self.owners.shape[0]),
            self.users[rows],
            self.weights[rows],
        )

    def of_users(self, users: Integers) -> Self:
        """The same pairs as those of other users."""
        return type(self)(
            self.axes,
            self.scores,
            self.pairs,
            _owners(users, self.owners.shape[0]),
            users,
            self.weights,
        )

    def differences(self, directions: Floats) -> Floats:
        """Pairs' feature differences along directions on the axes, [r] or [r, q]: [P] or [P, q]."""
        return self.pairs @ (self.scores @ directions)

    def gradient(self, residuals: Floats) -> Floats:
        """What `differences` sends back: from [P] or [P, q] to [r] or [r, q]."""
        return self.scores.T @ (self.pairs.T @ residuals)


def _owners(users: Integers, count: int) -> csr_array:
    places = np.arange(len(users))
    return csr_array((np.ones(len(users)), (users, places)), shape=(count, len(users)))


def fit_shared(design: Design, tau: float, penalty: float, start: Floats | None = None) -> Floats:
    """One direction for all users, on the axes: float64 [r].

    Args:
        design: the pairs.
        tau: ridge of the whitening.
        penalty: lambda_0.
        start: a direction to start from.
    """
    scales = design.axes.scales(tau)
    # Users' choices between the same two texts are one row that counts more.
    once, weights = _distinct(design)

    def objective(mu: Floats) -> tuple[float, Floats]:
        margins = once.differences(scales * mu)
        residuals = -weights * expit(-margins)
        value = weights @ np.logaddexp(0, -margins) + penalty / 2 * mu @ mu
        return float(value), scales * once.gradient(residuals) + penalty * mu

    zero = np.zeros(len(scales)) if start is None else start / scales
    return scales * _minimised(objective, zero)


def _distinct(design: Design) -> tuple[Design, Floats]:
    ends = design.pairs.indices.reshape(-1, 2)[
        np.arange(len(design))[:, None], np.argsort(-design.pairs.data.reshape(-1, 2), 1)
    ]
    _, first, which = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    return design[first], np.bincount(which.ravel(), design.weights, len(first)).astype(np.float64)


@dataclass(frozen=True)
class Hierarchy:
    """A fitted reward on the axes.

    Attributes:
        shared: the direction of all users, float64 [r].
        basis: the directions in which they differ, float64 [r, q].
        modes: where users are on them, float64 [N, q].
        gamma: penalty on basis and modes.
    """

    shared: Floats
    basis: Floats
    modes: Floats
    gamma: float


def fit_hierarchy(
    design: Design,
    shared: Floats,
    *,
    tau: float,
    penalty: float,
    dimensions: int,
    strength: float,
    rng: np.random.Generator,
) -> Hierarchy:
    """All of the model; users without a pair stay at zero.

    Args:
        design: the pairs.
        shared: what `fit_shared` gives for `tau` and `penalty`.
        tau, penalty: of the shared direction.
        dimensions: q, at most.
        strength: g, gamma in units of what chance alone would give.
        rng: draws labels.
    """
    scales, scales_2 = design.axes.scales(tau), design.axes.scales(TAU_2)[:, None]
    count, rank = design.owners.shape[0], len(scales)
    q = min(dimensions, count, rank)
    margins = design.differences(shared)

    chance = expit(margins)
    noise = [(rng.random(len(design)) < chance) - chance for _ in range(NULL_DRAWS)]
    by_chance = float(np.mean([_leading(design, drawn, scales_2, 1)[1][0] for drawn in noise]))
    gamma = max(strength * by_chance, LEAST)
    left, values, right = _leading(design, expit(-margins), scales_2, q)
    # The size of a first step by the curvature of an average user.
    size = np.sqrt(np.maximum(values - gamma, 0.01 * gamma) / max(len(design) / count / 8, 1))

    def unpack(flat: Floats) -> tuple[Floats, Floats, Floats]:
        mu, basis, modes = np.split(flat, [rank, rank + rank * q])
        return mu, basis.reshape(rank, q), modes.reshape(count, q)

    def objective(flat: Floats) -> tuple[float, Floats]:
        mu, basis, modes = unpack(flat)
        columns = design.differences(np.column_stack([scales * mu, scales_2 * basis]))
        own = modes[design.users]
        margins = columns[:, 0] + np.einsum("pq,pq->p", columns[:, 1:], own)
        residuals = (-design.weights * expit(-margins))[:, None]
        back = design.gradient(np.column_stack([residuals, residuals * own]))
        value = design.weights @ np.logaddexp(0, -margins) + penalty / 2 * mu @ mu
        value += gamma / 2 * (np.vdot(basis, basis) + np.vdot(modes, modes))
        return float(value), np.concatenate(
            [
                scales * back[:, 0] + penalty * mu,
                (scales_2 * back[:, 1:] + gamma * basis).ravel(),
                (design.owners @ (residuals * columns[:, 1:]) + gamma * modes).ravel(),
            ]
        )

    start = [shared / scales, (right.T * size).ravel(), (left * size).ravel()]
    mu, basis, modes = unpack(_minimised(objective, np.concatenate(start)))
    return Hierarchy(scales * mu, scales_2 * basis, modes, gamma)


def _leading(
    design: Design, residuals: Floats, scales: Floats, count: int
) -> tuple[Floats, Floats, Floats]:
    """The largest singular values, and vectors, of users' gradients in directions of their own.

    Args:
        design: the pairs.
        residuals: of the pairs, [P].
        scales: of the axes, [r, 1].
        count: how many.

    Returns:
        Vectors [N, count], values [count], the largest first, and vectors [count, r].
    """
    along = design.owners @ ((design.weights * residuals)[:, None] * design.pairs)
    shape = along.shape[0], len(scales)
    if min(shape) <= SMALL:
        gradients = (along @ design.scores) * scales.T
        left, values, right = np.linalg.svd(gradients, full_matrices=False)
        return left[:, :count], values[:count], right[:count]
    operator = LinearOperator(
        shape,
        matvec=lambda v: along @ (design.scores @ (scales[:, 0] * v.ravel())),
        rmatvec=lambda v: scales[:, 0] * (design.scores.T @ (along.T @ v.ravel())),
    )
    start = np.random.default_rng(0).standard_normal(min(shape))
    left, values, right = svds(operator, count, v0=start)
    return left[:, ::-1], values[::-1], right[::-1]


def _minimised(objective: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    options = {"maxiter": 500, "ftol": 1e-7, "gtol": 1e-6, "maxcor": 20}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
