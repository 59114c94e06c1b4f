"""The reward model alone on whole data sets: known people on what is new, and newcomers.

A quarter of the units is held out at a time. One model for all (B) and the hierarchical model (D)
learn from the same pairs, the latter behind its gate. As a control, the same with users shuffled
within units.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy.special import softmax

from benchmarks.real.sets import RealSet
from prlhf.data import agreement
from prlhf.data.ids import generator
from prlhf.people.features import Axes, Examples, Floats, Integers
from prlhf.people.fitting import Design, fit_shared
from prlhf.people.folds import fold_rows
from prlhf.people.gain import shuffled_within
from prlhf.people.hierarchical import HierarchicalReward, fit_hierarchical
from prlhf.people.posterior import Posterior

OPTIONS: Final[dict[str, Any]] = {
    "clusters": None,
    "max_clusters": 6,
    "dimensions": 8,
    "strength": 0.7,
    "rank": 1024,
    "max_pairs": 50_000,
    "folds": 5,
}
"""As in `params.yaml`."""

KNOWN: Final = (0, 1, 2, 4, 8, 16)
"""Choices of newcomers that they are placed by."""

PARTS: Final = 4
"""Parts of the units, one of which is held out at a time."""

DRAWS: Final = 3
"""Times that these are drawn."""


def measure(found: RealSet, examples: Examples, seed: int) -> dict[str, Any]:
    """All of one seed: known people, the control, and newcomers."""
    rng = generator(seed, "real data", found.name)
    control = shuffled_within(examples, rng)
    folds = fold_rows(examples.units, PARTS, rng)[: found.tested]
    return {
        "pairs": [{"train": len(fold.train), "test": len(fold.test)} for fold in folds],
        "users": [_known(examples[fold.train], examples[fold.test], seed) for fold in folds],
        "shuffled": [_known(control[fold.train], control[fold.test], seed) for fold in folds],
        "newcomers": [
            _newcomers(examples[fold.train], examples[fold.test], seed, rng) for fold in folds
        ],
    }


def _known(train: Examples, test: Examples, seed: int) -> dict[str, Any]:
    """Right predictions for each tested user, in two halves without a unit in common."""
    count = int(train.users.max())
    reward, report = fit_hierarchical(train, count, **OPTIONS, seed=seed)
    design = Design.of(train, Axes.of(train, OPTIONS["rank"]), count + 1)
    shared = design.axes.vectors @ fit_shared(design, **report["shared"])
    test = test[np.isin(test.users, train.users)]
    values = {
        "shared": agreement(_margins(test, shared)),
        "personal": agreement(_log_odds(reward, test)),
        "mixed": agreement(_log_odds(reward, test, mixed=True)),
        "pairs": np.ones(len(test)),
    }
    half = generator(seed, "halves").integers(0, 2, int(test.units.max()) + 1)[test.units[:, 0]]
    return {
        **{name: report[name] for name in ("gain", "clusters", "spread", "shared")},
        "by_user": {
            str(user): {
                name: [float(each[(test.users == user) & (half == k)].sum()) for k in (0, 1)]
                for name, each in values.items()
            }
            for user in np.unique(test.users).tolist()
        },
    }


def _newcomers(
    train: Examples, test: Examples, seed: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Accuracy for people in no fit, by how many of their choices are known."""
    people = np.unique(train.users)
    new = rng.choice(people, len(people) // 4, replace=False)
    count = int(train.users.max())
    others = train[~np.isin(train.users, new)]
    reward, report = fit_hierarchical(others, count, **OPTIONS, seed=seed, control=False)
    given = train[np.isin(train.users, new)]
    asked = test[np.isin(test.users, new)]
    right: dict[str, float] = {}
    for known in KNOWN:
        draws = []
        for _ in range(DRAWS):
            order = rng.permutation(len(given))
            order = order[np.argsort(given.users[order], kind="stable")]
            place = np.arange(len(order)) - np.searchsorted(given.users[order], given.users[order])
            placed = reward.posterior(given[order[place < known]], count + 1)
            draws.append(_by_user(asked.users, agreement(_log_odds(reward, asked, placed))).mean())
        right[str(known)] = float(np.mean(draws))
    return {
        "people": len(np.unique(asked.users)),
        "personal": report["gain"]["personal"],
        "accuracy": right,
    }


def _margins(pairs: Examples, direction: Floats) -> Floats:
    scores, differences = pairs.project(direction[:, None])
    return (differences @ scores)[:, 0]


def _log_odds(
    reward: HierarchicalReward,
    pairs: Examples,
    people: Posterior | None = None,
    *,
    mixed: bool = False,
) -> Floats:
    """Log-odds of pairs for their users, by their posterior or by their mixture of archetypes."""
    evidence = reward.evidence(pairs)
    people = people or reward.people
    if mixed:
        means = softmax(reward.weights.double().numpy(), 1) @ reward.centres.double().numpy()
        people = Posterior(means, people.covariances)
    return people.log_odds(evidence)


def _by_user(users: Integers, values: Floats) -> Floats:
    sizes = np.bincount(users)
    sums = np.bincount(users, values)
    return sums[sizes > 0] / sizes[sizes > 0]
