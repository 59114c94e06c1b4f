"""The personalised reward on the frozen base model's features, with a prior learned from people.

    r(x, y, u) = h . a + (h D) . s_u          s_u ~ N(0, 1) in each of q dimensions

where `h` is the mean last hidden state of the base model over the response `y` to `x`, `a` the
generic user's direction and D those in which people differ. It is fitted in seconds, before the
language model is trained, and says whether there is anything to gain by personalisation on these
data at all, who prefers what (a posterior for each person, known or new), and which few archetypes
people are mixtures of.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from prlhf.data.ids import generator
from prlhf.people.archetypes import fit_archetypes, place
from prlhf.people.features import Axes, Examples, Floats
from prlhf.people.fitting import Design, fit_shared
from prlhf.people.folds import fold_rows
from prlhf.people.gain import (
    Population,
    Settings,
    fewest,
    gain,
    is_gain,
    learn,
    predict,
    shuffled_within,
    tune_shared,
)
from prlhf.people.posterior import Evidence, Posterior, posterior

TAU: Final = 10.0
PENALTY: Final = 10.0
"""Ridge and penalty of the shared direction where units are too few for cross-validation."""


@dataclass(frozen=True)
class HierarchicalReward:
    """A fitted reward.

    Attributes:
        shared: a, float32 [d].
        basis: D, float32 [d, q]; 0 where there is nothing to gain.
        means: each user's mean of s_u, float32 [N + 1, q]; row 0 is the generic user's, 0.
        covariances: what is not known of each, float32 [N + 1, q, q].
        centres: archetypes c_k in the space of s, float32 [K, q].
        weights: logits w_u with `s_u ~ sum_k softmax(w_u)_k c_k`, float32 [N + 1, K].
    """

    shared: Tensor
    basis: Tensor
    means: Tensor
    covariances: Tensor
    centres: Tensor
    weights: Tensor

    def __call__(self, features: Tensor, users: Tensor) -> Tensor:
        """r of features, or of differences of features, float [R, d], for users, int64 [R]."""
        features = features.to(self.shared.dtype)
        return features @ self.shared + ((features @ self.basis) * self.means[users]).sum(-1)

    def log_odds(self, first: Tensor, second: Tensor, users: Tensor) -> Tensor:
        """Log-odds that users prefer the first of two responses, by their features, float32 [R].

        The difference of rewards, shrunk by what is not known of the user.
        """
        difference = first.to(self.shared.dtype) - second.to(self.shared.dtype)
        own = difference @ self.basis
        variance = torch.einsum("rq,rqj,rj->r", own, self.covariances[users], own)
        return self(difference, users) / torch.sqrt(1 + torch.pi * variance / 8)

    @property
    def personal(self) -> bool:
        """Whether users differ at all; if not, there was nothing to gain."""
        return bool(self.basis.any())

    @property
    def clusters(self) -> int:
        return len(self.centres)

    @property
    def assignments(self) -> Tensor:
        """The strongest archetype of each user, int64 [N]."""
        return self.weights[1:].argmax(1)

    def posterior(self, examples: Examples, count: int) -> Posterior:
        """Where people are, new ones included, by their pairs.

        Args:
            examples: pairs, whose users' numbers are 0 to `count` - 1.
            count: how many people; those without a pair are the generic user.
        """
        return posterior(self.evidence(examples), count)

    def evidence(self, examples: Examples) -> Evidence:
        """What pairs say of their users."""
        matrix = torch.cat([self.shared[:, None], self.basis], 1).double().numpy()
        scores, pairs = examples.project(matrix)
        columns = pairs @ scores
        return Evidence(columns[:, 0], columns[:, 1:], examples.users, examples.weights)

    @property
    def people(self) -> Posterior:
        """Where the users are; position 0 is the generic user's."""
        return Posterior(self.means.double().numpy(), self.covariances.double().numpy())

    def place(self, people: Posterior) -> Tensor:
        """Logits over the archetypes of anyone, float32 [n, K]."""
        if not self.personal:
            return self.weights[:1].expand(len(people.means), -1).clone()
        return torch.from_numpy(place(people, self.centres.double().numpy())).float()


def fit_hierarchical(
    train: Examples,
    users: int,
    *,
    clusters: int | None,
    max_clusters: int = 6,
    dimensions: int = 8,
    strength: float = 0.7,
    rank: int = 1024,
    max_pairs: int = 50_000,
    folds: int = 5,
    seed: int,
    control: bool = True,
) -> tuple[HierarchicalReward, dict[str, Any]]:
    """Fit the reward, if cross-validation says that people are better known one by one.

    Args:
        train: pairs of the seen users, whose numbers are 1 to `users`.
        users: N.
        clusters: K; None for the smallest that predicts as well as more would.
        max_clusters: the largest K that is tried.
        dimensions: q, at most.
        strength: how much stronger than chance a difference between people must be.
        rank: principal axes of the features that are used, at most.
        max_pairs: pairs, of whole users, from which all but users' own places is learned.
        folds: of the cross-validation.
        seed: of folds, drawn labels and clusterings.
        control: whether to cross-validate with users shuffled, too.

    Returns:
        The reward, and what `reports/pretrain.json` says of it.
    """
    rng = generator(seed, "hierarchical reward")
    train = replace(train, weights=train.weights / train.weights.mean())
    sample = _whole_users(train, max_pairs, rng)
    people, positions = np.unique(sample.users, return_inverse=True)
    sample = replace(sample, users=positions)
    design = Design.of(sample, Axes.of(sample, rank), len(people))
    parts = fold_rows(sample.units, folds, rng)
    if not parts:
        return _untold(design, train, users, clusters or 1, dimensions)
    settings = Settings(*tune_shared(design, parts), dimensions, strength)
    most = min(len(people), clusters or max_clusters)
    counts = [most] if clusters else range(min(2, most), most + 1)
    predicted = predict(design, parts, settings, counts, seed, rng)
    found = gain(design, predicted)
    chosen, tried = fewest(design, predicted)
    without = None
    if control:
        shuffled = design.of_users(shuffled_within(sample, rng).users)
        found["shuffled"] = gain(shuffled, predict(shuffled, parts, settings, [], seed, rng))
        without = found["shuffled"]["log_loss"]
    personal = predicted.spread > 0 and is_gain(found["log_loss"], found["users"], without)
    if personal:
        population = learn(design, settings, rng).scaled(predicted.spread)
    else:
        chosen = clusters or 1
        shared = fit_shared(design, settings.tau, settings.penalty)
        population = Population.alike(shared, dimensions)
    report = {
        "gain": {"personal": personal, **found},
        "clusters": chosen,
        "tried": tried,
        "spread": predicted.spread,
        "shared": {"tau": settings.tau, "penalty": settings.penalty},
        "pairs": {"train": len(train), "learned_from": len(sample)},
    }
    return _reward(design.axes, population, train, users, chosen, seed), report


def _untold(
    design: Design, train: Examples, users: int, clusters: int, dimensions: int
) -> tuple[HierarchicalReward, dict[str, Any]]:
    """One direction for all, where there is nothing to learn from beside what is predicted."""
    population = Population.alike(fit_shared(design, TAU, PENALTY), dimensions)
    nothing = dict.fromkeys(("personal", "shared", "difference", "se"))
    figures = {"users": 0, "pairs": 0, "log_loss": nothing, "accuracy": nothing}
    report = {
        "gain": {"personal": False, **figures, "shuffled": figures},
        "clusters": clusters,
        "tried": {},
        "spread": 0.0,
        "shared": {"tau": TAU, "penalty": PENALTY},
        "pairs": {"train": len(train), "learned_from": len(design)},
    }
    return _reward(design.axes, population, train, users, clusters, 0), report


def _whole_users(examples: Examples, most: int, rng: np.random.Generator) -> Examples:
    """All pairs of as many users as have `most` pairs together, drawn at random; one at least."""
    if len(examples) <= most:
        return examples
    sizes = np.bincount(examples.users)
    order = rng.permutation(len(sizes))
    taken = order[np.cumsum(sizes[order]) <= max(most, sizes[order[sizes[order] > 0][0]])]
    return examples[np.isin(examples.users, taken)]


def _reward(
    axes: Axes, population: Population, train: Examples, users: int, clusters: int, seed: int
) -> HierarchicalReward:
    """The reward of a population, with everybody in their place."""
    unplaced = HierarchicalReward(
        _single(axes.vectors @ population.shared),
        _single(axes.vectors @ population.basis),
        torch.zeros(0),
        torch.zeros(0),
        torch.zeros(clusters, population.basis.shape[1]),
        torch.zeros(users + 1, clusters),
    )
    # Users are numbered from 1: position 0 has no pair, and is the generic user's.
    people = unplaced.posterior(train, users + 1)
    placed = replace(unplaced, means=_single(people.means), covariances=_single(people.covariances))
    if not placed.personal:
        return placed
    everyone = Posterior(people.means[1:], people.covariances[1:])
    placed = replace(placed, centres=_single(fit_archetypes(everyone, clusters, seed)))
    return replace(placed, weights=placed.place(people))


def _single(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
