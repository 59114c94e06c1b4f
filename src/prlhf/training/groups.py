"""One adapter for each known group: the baseline that knows what user models have to find out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from peft import PeftModel

from prlhf.errors import UserError
from prlhf.models.lora import adapter_path, load_adapters, save_adapters
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import GroupUserModel
from prlhf.progress import say
from prlhf.training.pairs import Pair, of_users


def group_user_model(users: pd.DataFrame, dim: int, where: str) -> GroupUserModel:
    """Who is of which group, as the data say; users of none count to the largest.

    Args:
        users: the prepared users table.
        dim: the language model's embedding width.
        where: the key that asks for it, for errors.

    Raises:
        UserError: no seen user has a group.
    """
    seen = users[users["seen"]].sort_values("user_index", ignore_index=True)
    counts = seen["group"].value_counts()
    # By size; by name among equals, so that the order does not depend on that of the users.
    groups = [str(name) for name in sorted(counts.index, key=lambda name: (-counts[name], name))]
    if not groups:
        raise UserError(
            "has an adapter for each known group, but no user of this data set has one",
            where=where,
            fix="map data.columns.group, or leave the method out of compare",
        )
    if strangers := int(seen["group"].isna().sum()):
        say(f"{strangers} users of no group are trained and served as “{groups[0]}”")
    model = GroupUserModel(seen["user_id"].tolist(), 0, dim, groups=groups)
    position = {name: i for i, name in enumerate(groups)}
    members = [position.get(str(group), 0) for group in seen["group"]]
    model.members[1:] = torch.tensor(members, dtype=torch.long)
    return model


def train_groups(
    users: GroupUserModel,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    fresh: Callable[[], PersonalizedLM],
    fit: Callable[[PersonalizedLM, Sequence[Pair], Sequence[Pair], str, str], pd.DataFrame],
    directory: Path,
) -> tuple[PersonalizedLM, pd.DataFrame]:
    """Train an adapter on each group's own pairs, as plain DPO would, one after the other.

    Each is trained for all epochs of its group's pairs, `train.max_steps` steps at most. Where that
    limit holds for all methods, K groups cost up to K times as much as one of them.

    Args:
        users: who is of which group.
        pairs: `train` and `validation`.
        fresh: the base model with a new adapter and no user tokens.
        fit: trains a model in place on pairs, watching others; given the adapter's and the group's
            name, too. Returns the training curves.
        directory: an existing one, which gets the adapters.

    Returns:
        The model with all adapters, and the mean of the groups' curves.
    """
    curves = []
    for name, group in zip(users.adapters, users.groups, strict=True):
        lm = fresh()
        member = partial(_is_served_by, users, name)
        theirs = {split: of_users(listed, member) for split, listed in pairs.items()}
        curves.append(fit(lm, theirs["train"], theirs["validation"], name, group))
        wrapped = cast(PeftModel, lm.lm)
        save_adapters(wrapped, adapter_path(directory, name))
        # The next one starts from the base model itself.
        wrapped.unload()
    adapters = load_adapters(lm.base.model, directory, users.adapters)
    return PersonalizedLM(lm.base, adapters, users, lm.encoder, lm.about), mean_curves(curves)


def _is_served_by(users: GroupUserModel, adapter: str, user: int) -> bool:
    return users.adapter(user) == adapter


def mean_curves(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Curves averaged step by step over those that have come so far."""
    together = pd.concat(curves, ignore_index=True)
    columns = list(together.columns)
    mean = together.groupby(["step", "split"], as_index=False, sort=False).mean()
    return mean.sort_values(["step", "split"], ignore_index=True)[columns]
