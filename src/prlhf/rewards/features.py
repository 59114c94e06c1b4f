"""The personalised reward model (P-RM) on the frozen base model's features.

    r(x, y, u) = (h(x, y) P) . sum_k softmax(w_u)_k v_k

where `h` is the mean last hidden state of the base model over the response `y`: a reward that is
linear in a few projected features, with one of K directions for each kind of user. It is fitted by
the two-term P-RM loss (paper, section 4.2) in seconds, before the language model is trained, and
tells which users prefer alike, how many kinds of preference there are, and whether personalisation
pays on this data at all.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.cluster.vq import kmeans2
from torch import Tensor

from prlhf.data import GENERIC, agreement
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_json

CARD: Final = "reward_model.json"
WEIGHTS: Final = "reward_model.safetensors"
FORMAT: Final = 1

SHARPNESS: Final = 3.0
"""First logit of a user's own cluster over the others: about 0.9 of the weight when K is 2 or 3."""


@dataclass(frozen=True)
class Examples:
    """Pairs: feature differences chosen - rejected, float32 [P, d], and users, int64 [P]."""

    differences: Tensor
    users: Tensor

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class FeatureReward:
    """A fitted reward.

    Attributes:
        projection: P, float32 [d, r].
        directions: v_k, float32 [K, r].
        weights: w_u, float32 [N + 1, K]; row 0 is the generic user's.
    """

    projection: Tensor
    directions: Tensor
    weights: Tensor

    def __call__(self, features: Tensor, users: Tensor) -> Tensor:
        """r of features, or of differences of features, float32 [R, d], for users, int64 [R]."""
        return mixed_reward(features @ self.projection, self.directions, self.weights[users])

    @property
    def clusters(self) -> int:
        return len(self.directions)

    @property
    def assignments(self) -> Tensor:
        """The strongest cluster of each seen user, int64 [N]."""
        return self.weights[1:].argmax(1)


def mixed_reward(z: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """r(x, y, u) = z(x, y) . sum_k softmax(w_u)_k v_k, float [R].

    Args:
        z: projected features of R texts, or their differences, float [R, r].
        directions: v_k, float [K, r].
        weights: w_u of each text's user, float [R, K].
    """
    return (z * (torch.softmax(weights, dim=-1) @ directions)).sum(-1)


# -- fitting -------------------------------------------------------------------------------------


def fit_feature_reward(
    train: Examples,
    validation: Examples | None,
    users: int,
    *,
    clusters: int | None,
    rank: int,
    steps: int,
    lr: float,
    l2: float,
    seed: int,
    alpha: float = 1.0,
    max_clusters: int = 1,
    generic_pull: float = 0.0,
) -> tuple[FeatureReward, dict[str, Any]]:
    """Minimise `-alpha log sigmoid(dr(u)) - (1 - alpha) log sigmoid(dr(u_0))` (P-RM) over pairs.

    `dr` is the difference in reward between the chosen and the rejected response.

    Args:
        train: pairs of the seen users.
        validation: further pairs, to choose K and report accuracies; without any, `train` is used.
        users: N, how many seen users there are.
        clusters: K; None for the smallest whose validation loss is within a standard error of the
            best.
        rank: r, at most.
        steps, lr: of the optimiser; each step is on all pairs.
        l2: penalty on directions and weights.
        seed: of the clustering.
        alpha: weight of the personalised term; 1 - alpha is the generic user's.
        max_clusters: the largest K that is tried.
        generic_pull: how strongly the generic user's weights are pulled to the users' mean.

    Returns:
        The reward, and the choice of K and the accuracies as in `reports/pretrain.json`.
    """
    projection = _projection(train.differences, rank)
    z = train.differences @ projection
    counts = range(1, min(max_clusters, users) + 1) if clusters is None else [min(clusters, users)]
    generic = torch.full_like(train.users, GENERIC)

    def fit(count: int) -> FeatureReward:
        directions, weights = _start(z, train.users, users, count, seed)
        optimizer = torch.optim.Adam([directions, weights], lr=lr)
        for _ in range(steps):
            as_user = -F.logsigmoid(mixed_reward(z, directions, weights[train.users]))
            as_generic = -F.logsigmoid(mixed_reward(z, directions, weights[generic]))
            loss = (alpha * as_user + (1 - alpha) * as_generic).mean()
            pull = (weights[GENERIC] - weights[1:].detach().mean(0)).pow(2).sum()
            decay = directions.pow(2).sum() + weights[1:].pow(2).mean()
            optimizer.zero_grad()
            (loss + l2 * decay + generic_pull * pull).backward()
            optimizer.step()
        return FeatureReward(projection, directions.detach(), weights.detach())

    fitted = {count: fit(count) for count in counts}
    tried = {
        count: evaluate_feature_reward(reward, validation or train)
        for count, reward in fitted.items()
    }
    best = min(tried, key=lambda k: tried[k]["loss"])
    limit = tried[best]["loss"] + tried[best]["loss_se"]
    chosen = min(k for k in tried if tried[k]["loss"] <= limit)
    report = {
        "clusters": chosen,
        "tried": {str(k): figures for k, figures in tried.items()},
        "accuracy": {
            "personalised": tried[chosen]["accuracy_user"],
            "generic": tried[chosen]["accuracy_generic"],
        },
        "pairs": {"train": len(train), "validation": len(validation or ())},
    }
    return fitted[chosen], report


@torch.no_grad()
def evaluate_feature_reward(reward: FeatureReward, examples: Examples) -> dict[str, float]:
    """Accuracy as the pairs' users and as the generic user, and the mean personalised loss."""
    as_user = reward(examples.differences, examples.users)
    as_generic = reward(examples.differences, torch.full_like(examples.users, GENERIC))
    losses = F.softplus(-as_user)
    return {
        "accuracy_user": float(agreement(as_user).mean()),
        "accuracy_generic": float(agreement(as_generic).mean()),
        "loss": float(losses.mean()),
        "loss_se": float(losses.std(correction=0) / max(len(losses), 1) ** 0.5),
    }


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


def _start(z: Tensor, owners: Tensor, users: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Directions and weights to start from: clusters of the users' mean differences."""
    means = torch.zeros(users + 1, z.shape[1]).index_add(0, owners, z)
    counts = torch.bincount(owners, minlength=users + 1).clamp_min(1)
    means = means / counts.unsqueeze(1)
    labels = _cluster(means[1:], count, seed)
    directions = torch.stack(
        [
            means[1:][labels == k].mean(0) if bool((labels == k).any()) else torch.zeros(z.shape[1])
            for k in range(count)
        ]
    ).requires_grad_()
    weights = torch.zeros(users + 1, count)
    weights[1:] = SHARPNESS * F.one_hot(labels, count)
    weights[GENERIC] = weights[1:].mean(0)
    return directions, weights.requires_grad_()


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


# -- files ---------------------------------------------------------------------------------------


def save_feature_reward(
    reward: FeatureReward,
    directory: Path,
    *,
    users: Sequence[str],
    base: Path,
    source: Mapping[str, Any],
    max_prompt: int,
    max_response: int,
    about: Mapping[str, Any],
) -> None:
    """Write a directory that `prlhf.rewards.lm.FeatureRewardModel.from_pretrained` reads.

    Args:
        reward: what was fitted.
        directory: an existing one; the card points to the base model relative to it.
        users: ids of the users in index order, without the generic user.
        base: directory of the base model whose features it was fitted on.
        source: where that model is from; see `prlhf.models.base.read_source`.
        max_prompt, max_response: limits of the texts that it was fitted on, in tokens.
        about: what the card records besides.
    """
    tensors = {name: value.contiguous() for name, value in vars(reward).items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    card = {
        "format": FORMAT,
        "base": {"path": Path(os.path.relpath(base, directory)).as_posix(), **source},
        "tokens": {"max_prompt": max_prompt, "max_response": max_response},
        **about,
        "users": list(users),
    }
    write_json(directory / CARD, card)


def load_feature_reward(directory: Path) -> tuple[FeatureReward, dict[str, Any]]:
    """Read what `save_feature_reward` wrote: the reward and its card.

    Raises:
        UserError: something is missing, damaged or was made by a newer version.
    """
    if not (directory / CARD).is_file():
        raise UserError(
            "holds no reward model", where=directory, fix="pretrain with pretrain.method: reward"
        )
    card: dict[str, Any] = read_json(directory / CARD)
    if card["format"] > FORMAT:
        raise UserError("was written by a newer prlhf", where=directory / CARD, fix="upgrade prlhf")
    try:
        return FeatureReward(**load_file(str(directory / WEIGHTS))), card
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            "is missing or damaged",
            where=directory / WEIGHTS,
            fix="run `dvc repro -f pretrain_user_model`",
        ) from error
