"""How far a trained model's users may differ from the generic user: a check on held-out pairs.

The pretraining asks features whether there is anything to gain at all, and shrinks each user; this
asks the trained model itself. What is best for the mean user decides, and not what is best by more
than a standard error: with as few pairs as there are for validation that would give away most of a
real gain, while a model that harms its users is found out by either.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from prlhf.infra import distributed
from prlhf.infra.kept import KeptWork
from prlhf.infra.progress import Progress, say
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import MixtureUserModel
from prlhf.params import TrainParams
from prlhf.training.dataset import PreferenceCollator, PreferenceExample
from prlhf.training.losses import pdpo_loss

LEVELS: Final = (1.0, 0.5, 0.0)
"""Trusts that are tried: `e_u = e_0 + trust * (e_u - e_0)`."""


def may_differ(lm: PersonalizedLM, alpha: float) -> bool:
    """Whether a model trained with this weight of the personalised term has users to trust."""
    return alpha > 0 and lm.user_model.tokens > 0 and lm.user_model.tells_apart


@torch.no_grad()
def settle_trust(
    lm: PersonalizedLM,
    pairs: Sequence[PreferenceExample],
    train: TrainParams,
    *,
    batch: int,
    label: str,
    work: KeptWork | None = None,
) -> dict[str, Any]:
    """Set a trained model's trust to that of `LEVELS` with the least loss of the mean user.

    Args:
        lm: on users who are told apart.
        pairs: validation pairs, at least one.
        train: the loss of a preference; nothing else of the objective counts.
        batch: pairs computed together.
        label: shown with the progress.
        work: of this run alone, where losses are kept as they come, and those of a killed run are
            found. None for none.

    Returns:
        For a report: the `trust`, the mean `loss` at each level, and how many `users` and `pairs`
        it was measured on.
    """
    users = lm.user_model
    assert isinstance(users, MixtureUserModel)
    collate = PreferenceCollator(lm.pack, as_user=True, as_generic=False)
    batches = [list(range(i, min(i + batch, len(pairs)))) for i in range(0, len(pairs), batch)]
    # Processes that share a model's parts have to do the same, however far each had come.
    work = None if distributed.sharded() else work
    key = f"trust-{distributed.process_rank()}-of-{distributed.world_size()}"
    kept = None if work is None else work.load(key)
    losses = torch.zeros(len(LEVELS), len(pairs)) if kept is None else kept[0]["losses"]
    known = 0 if kept is None else kept[1]
    turn_number = 0
    lm.eval()
    with Progress(
        total=len(LEVELS) * len(pairs), label=f"{label}: trust", unit="pairs"
    ) as progress:
        for level, of_level in zip(LEVELS, losses, strict=True):
            users.trust = level
            for turn in distributed.turns(batches):
                turn_number += 1
                if turn_number <= known:
                    progress.expect(-turn.together)
                    continue
                packed = collate([pairs[i] for i in turn.rows])["batch"].to(lm.device)
                found = pdpo_loss(lm, packed, train).metrics["preference_loss"]
                if turn.own:
                    of_level[turn.rows] = found.cpu()
                progress.advance(turn.together)
                if work is not None and work.pace.due():
                    work.save(key, {"losses": losses}, turn_number)
    distributed.all_reduce_sum_(losses)
    weights = np.array([pair.weight for pair in pairs])
    counted, owners = np.unique([pair.user_index for pair in pairs], return_inverse=True)
    sums = np.stack([np.bincount(owners, one * weights) for one in losses.double().numpy()])
    means = (sums / np.bincount(owners, weights)).mean(1)
    users.trust = LEVELS[int(means.argmin())]
    if users.trust < 1:
        what = "users are put half-way to" if users.trust else "all users are made"
        say(f"{label}: {what} the generic user, which predicts held-out pairs best")
    return {
        "trust": users.trust,
        "loss": dict(zip(map(str, LEVELS), means.tolist(), strict=True)),
        "users": len(counted),
        "pairs": len(pairs),
    }
