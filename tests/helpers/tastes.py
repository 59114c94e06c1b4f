"""Simulated people with tastes for the hierarchical reward: pairs of texts with random features."""

from __future__ import annotations

import numpy as np
import torch

from prlhf.people.features import Examples


def choices(
    tastes: np.ndarray,
    pairs: int,
    *,
    texts: int = 400,
    units: int = 25,
    seed: int = 0,
    noise: bool = True,
) -> Examples:
    """Everybody's choices between random texts of one unit, by sigmoid(taste . difference).

    Args:
        tastes: what each user likes, [N, d]; users' numbers count from 1.
        pairs: of each user.
        texts: in all units together.
        units: prompts.
        seed: of everything.
        noise: whether users choose at random where they nearly do not care.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(texts, tastes.shape[1]))
    users = np.repeat(np.arange(len(tastes)), pairs)
    unit = rng.integers(0, units, len(users))
    each = texts // units
    first = rng.integers(0, each, len(users))
    second = (first + rng.integers(1, each, len(users))) % each
    first, second = unit * each + first, unit * each + second
    margin = ((features[first] - features[second]) * tastes[users]).sum(1)
    limit = rng.logistic(size=len(users)) if noise else 0.0
    better = margin > limit
    return Examples(
        torch.from_numpy(features).float(),
        np.where(better, first, second),
        np.where(better, second, first),
        users + 1,
        unit[:, None],
        np.ones(len(users)),
    )
