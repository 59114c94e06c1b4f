"""User-model pretraining by a personalised reward model (P-RM) on the frozen model's features.

A reward that is linear in a few projected features, with one of K directions per kind of user:

    r(x, y, u) = z(x, y) . sum_k softmax(w_u)_k v_k

trained by the two-term P-RM loss (paper, section 4.2) in seconds, before the language model is
touched. It tells who prefers alike, how many kinds of preference there are, and whether
personalisation pays on this data at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from prlhf.objectives import mixed_reward, reward_loss

SHARPNESS = 3.0
"""First logit of a user's own cluster over the others: about 0.9 of the weight when K is 2 or 3."""


@dataclass(frozen=True)
class RewardOptions:
    """See `pretrain.*` and `user_model.*` in `params.yaml`."""

    alpha: float
    rank: int
    steps: int
    lr: float
    l2: float
    clusters: int | None
    max_clusters: int
    generic_pull: float


@dataclass(frozen=True)
class Examples:
    """Pairs: feature differences chosen - rejected, float32 [P, d], and users, int64 [P]."""

    differences: Tensor
    users: Tensor

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class RewardModel:
    """A trained P-RM.

    Attributes:
        projection: float32 [d, r], features to z.
        directions: float32 [K, r], v_k.
        weights: float32 [N + 1, K], w_u; row 0 is the generic user's.
        report: accuracies and the choice of K, for `reports/pretrain.json`.
    """

    projection: Tensor
    directions: Tensor
    weights: Tensor
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def clusters(self) -> int:
        return len(self.directions)

    @property
    def assignments(self) -> Tensor:
        """The strongest cluster of each seen user, int64 [N]."""
        return self.weights[1:].argmax(1)

    def reward_differences(self, differences: Tensor, users: Tensor) -> Tensor:
        """r(x, y_w, u) - r(x, y_l, u) of feature differences [P, d] for user indices [P]."""
        return mixed_reward(differences @ self.projection, self.directions, self.weights[users])


def train_reward_model(
    train: Examples, validation: Examples, users: int, options: RewardOptions, seed: int
) -> RewardModel:
    """Fit the P-RM; K is `options.clusters`, or chosen on the validation pairs when that is None.

    The smallest K is taken whose validation loss is within one standard error of the best.

    Args:
        train, validation: pairs of the seen users; `validation` may be empty when K is given.
        users: N, how many seen users there are.
        options: sizes and step counts.
        seed: seed of the clustering.
    """
    projection = _projection(train.differences, options.rank)
    tried: dict[int, dict[str, float]] = {}
    if options.clusters is not None:
        counts = [min(options.clusters, users)]
    else:
        counts = list(range(1, min(options.max_clusters, users) + 1))
    watched = validation if len(validation) else train
    models = {}
    for count in counts:
        model = _fit(train, projection, users, count, options, seed)
        models[count] = model
        tried[count] = evaluate_reward_model(model, watched)
    best = min(tried, key=lambda k: tried[k]["loss"])
    limit = tried[best]["loss"] + tried[best]["loss_se"]
    chosen = min(k for k in tried if tried[k]["loss"] <= limit)
    model = models[chosen]
    report = {
        "clusters": chosen,
        "tried": {str(k): v for k, v in tried.items()},
        "accuracy": {
            "personalised": tried[chosen]["accuracy_user"],
            "generic": tried[chosen]["accuracy_generic"],
        },
        "pairs": {"train": len(train), "validation": len(validation)},
    }
    return RewardModel(model.projection, model.directions, model.weights, report)


@torch.no_grad()
def evaluate_reward_model(model: RewardModel, examples: Examples) -> dict[str, float]:
    """Accuracy as the pairs' users and as the generic user, and the mean personalised loss."""
    as_user = model.reward_differences(examples.differences, examples.users)
    as_generic = model.reward_differences(examples.differences, torch.zeros_like(examples.users))
    losses = torch.nn.functional.softplus(-as_user)
    return {
        "accuracy_user": _accuracy(as_user),
        "accuracy_generic": _accuracy(as_generic),
        "loss": float(losses.mean()),
        "loss_se": float(losses.std(correction=0) / max(len(losses), 1) ** 0.5),
    }


def _accuracy(difference: Tensor) -> float:
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def _projection(differences: Tensor, rank: int) -> Tensor:
    """Principal directions of the differences, scaled to unit variance: [d, r].

    About zero rather than about the mean: a pair and its mirror image say the same.
    """
    deviations = differences.pow(2).mean(0).sqrt().clamp_min(1e-8)
    scaled = differences / deviations
    eigenvalues, vectors = torch.linalg.eigh(scaled.double().T @ scaled.double() / len(scaled))
    rank = min(rank, int((eigenvalues > 1e-6 * eigenvalues[-1]).sum()))
    top = vectors[:, -rank:].flip(1)
    # Eigenvectors have no sign of their own; fix it so that runs agree.
    top = top * torch.sign(top[top.abs().argmax(0), torch.arange(rank)])
    scale = eigenvalues[-rank:].flip(0).sqrt()
    return (top / scale / deviations.double().unsqueeze(1)).float()


def _fit(
    train: Examples, projection: Tensor, users: int, count: int, options: RewardOptions, seed: int
) -> RewardModel:
    z = train.differences @ projection
    means = torch.zeros(users + 1, z.shape[1]).index_add(0, train.users, z)
    counts = torch.bincount(train.users, minlength=users + 1).clamp_min(1)
    means = means / counts.unsqueeze(1)
    labels = _cluster(means[1:], count, seed)
    directions = torch.stack(
        [
            means[1:][labels == k].mean(0) if bool((labels == k).any()) else torch.zeros(z.shape[1])
            for k in range(count)
        ]
    ).requires_grad_()
    weights = torch.zeros(users + 1, count)
    weights[1:] = SHARPNESS * torch.nn.functional.one_hot(labels, count)
    weights[0] = weights[1:].mean(0)
    weights.requires_grad_()
    optimizer = torch.optim.Adam([directions, weights], lr=options.lr)
    generic = torch.zeros_like(train.users)
    for _ in range(options.steps):
        loss = reward_loss(
            mixed_reward(z, directions, weights[train.users]),
            mixed_reward(z, directions, weights[generic]),
            alpha=options.alpha,
        ).mean()
        pull = (weights[0] - weights[1:].detach().mean(0)).pow(2).sum()
        decay = directions.pow(2).sum() + weights[1:].pow(2).mean()
        optimizer.zero_grad()
        (loss + options.l2 * decay + options.generic_pull * pull).backward()
        optimizer.step()
    return RewardModel(projection, directions.detach(), weights.detach())


def _cluster(points: Tensor, count: int, seed: int) -> Tensor:
    """k-means labels, int64 [N], numbered by size (largest first, then by first member)."""
    if count == 1:
        return torch.zeros(len(points), dtype=torch.long)
    _, labels = kmeans2(points.double().numpy(), count, minit="++", rng=np.random.default_rng(seed))
    order = sorted(
        range(count),
        key=lambda k: (-int((labels == k).sum()), *np.flatnonzero(labels == k)[:1].tolist()),
    )
    rank = {k: i for i, k in enumerate(order)}
    return torch.tensor([rank[int(k)] for k in labels])
