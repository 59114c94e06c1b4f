"""Reward models that are asked in texts: what a user thinks of a response to a prompt.

`PersonalizedRewardModel` is a scalar head on the personalised language model (paper, section 4.2),

    r(x, y, u) = v . h(u, x, y)

where `h` is the last hidden state of `[ f_P(u) ; emb(x) ; emb(y) ]` at the last token of `y`, its
end mark unless it was cut: the only position that has read the whole response. The
base model is frozen; the LoRA adapter, the user model and the head `v` are trained.

`FeatureRewardModel` is the smaller one of `prlhf.people.hierarchical`, behind the base model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prlhf.data import GENERIC
from prlhf.data.prompts import canonical_prompt
from prlhf.data.users import UserIndex
from prlhf.infra import distributed
from prlhf.infra.errors import UserError
from prlhf.infra.progress import Progress
from prlhf.models.base import Encoder, load_base
from prlhf.models.packing import Packed, Row
from prlhf.models.personalized import PersonalizedLM, Prompt
from prlhf.models.user_model import UserModel
from prlhf.people.files import load_reward
from prlhf.people.hierarchical import HierarchicalReward

HEAD: Final = "reward_head.safetensors"


class PersonalizedRewardModel(nn.Module):
    """r(x, y, u): what a user thinks of a response.

    The head starts at zero, so that it prefers nothing. It has no bias, which would cancel out in
    every difference.

    Args:
        lm: the personalised language model whose hidden states the head reads.
    """

    def __init__(self, lm: PersonalizedLM) -> None:
        super().__init__()
        self.lm = lm
        self.head = nn.Linear(lm.base.hidden_size, 1, bias=False, device=lm.device)
        nn.init.zeros_(self.head.weight)

    @property
    def user_model(self) -> UserModel:
        return self.lm.user_model

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def pack(self, rows: Sequence[Row]) -> Packed:
        """Rows as one batch, prompts shared between a row's responses where the model can."""
        return self.lm.pack([self._read_whole(row) for row in rows])

    def _read_whole(self, row: Row) -> Row:
        """The row with one more token on each response: a packed row leaves out the last one."""
        end = self.lm.encoder.chat.conventions.closing[-1]
        return replace(row, responses=[[*response, end] for response in row.responses])

    def forward(
        self, batch: Packed, *, users: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """r of each response of the batch in row order, float32 [R].

        Args:
            batch: rows packed by `pack`, on this model's device.
            users: also return the regularisers of these users, int64 [U].
        """
        hidden = self.lm.hidden(batch)
        last = batch.predictors[batch.tokens.cumsum(0) - 1]
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, last)
        rewards = self.head(states.to(self.head.weight.dtype)).squeeze(-1)
        return rewards, None if users is None else self.user_model.penalty(users)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute most activations in the backward pass instead of keeping them."""
        self.lm.activation_checkpointing_enable(**options)

    @torch.no_grad()
    def score(
        self, rows: Sequence[Row], *, label: str, max_rows: int = 16, max_positions: int = 2048
    ) -> Tensor:
        """Rewards of any number of rows, batched by length: float32 [R] on the CPU, in order.

        Several processes share the batches out, and each has all results.
        """
        self.eval()
        rewards = torch.zeros(sum(len(row.responses) for row in rows))
        whole = [self._read_whole(row) for row in rows]
        with Progress(len(whole), label, "rows") as progress:
            for batch, where, own in self.lm.batches(
                whole, progress, max_rows=max_rows, max_positions=max_positions
            ):
                found, _ = self(batch)
                if own:
                    rewards[where] = found.float().cpu()
        distributed.all_reduce_sum_(rewards)
        return rewards

    def reward(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        users: Sequence[str | int | None],
        texts: Sequence[str | None] | None = None,
        *,
        label: str = "reward",
    ) -> list[float]:
        """What each user thinks of each response: one reward for each position of the lists.

        Only differences between responses to one prompt, for one user, mean anything: the user
        prefers the one with the higher reward with odds `exp(difference)`.

        Args:
            prompts: text, or chat messages.
            responses: one to each prompt; those to one prompt for one user are computed together.
            users: by your own ids; None for somebody who was not trained on, the generic user.
            texts: each user's own text, for models that read it (`text: true`).
            label: shown with the progress.

        Raises:
            UserError: the lists differ in length, a user is unknown, or there are texts for a model
                that reads none.
        """
        _require_one_each(prompts, responses, users)
        encoder = self.lm.encoder
        positions: dict[tuple[int, str, str | None], list[int]] = {}
        read = encoder.given_texts(texts, len(prompts))
        asked_by = self.user_model.indices(users)
        for i, (prompt, user, text) in enumerate(zip(prompts, asked_by, read, strict=True)):
            key = user, canonical_prompt(prompt), text
            positions.setdefault(key, []).append(i)
        rows = []
        for (index, prompt, text), members in positions.items():
            asked = [encoder.response(responses[i]) for i in members]
            rows.append(Row(index, encoder.prompt(prompt, text), asked))
        rewards = [0.0] * len(prompts)
        order = (i for members in positions.values() for i in members)
        for i, value in zip(order, self.score(rows, label=label).tolist(), strict=True):
            rewards[i] = value
        return rewards

    def save_pretrained(self, directory: Path) -> None:
        """Write adapter, user model, card (as `PersonalizedLM` does) and head to a directory."""
        self.lm.save_pretrained(directory)
        weight = self.head.weight.detach().cpu().contiguous()
        save_file({"weight": weight}, str(directory / HEAD), metadata={"format": "pt"})

    def load_head(self, directory: Path) -> None:
        """Load the head that `save_pretrained` wrote.

        Raises:
            UserError: there is none.
        """
        if not (directory / HEAD).is_file():
            raise UserError(
                "holds no reward model", where=directory, fix="name one that prlhf trained"
            )
        self.head.load_state_dict(load_file(str(directory / HEAD)))

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, base: str | Path | None = None, dtype: str = "auto"
    ) -> PersonalizedRewardModel:
        """Load a directory written by `save_pretrained`, as `PersonalizedLM.from_pretrained` does.

        Raises:
            UserError: something is missing or was made by a newer version.
        """
        model = cls(PersonalizedLM.from_pretrained(directory, base=base, dtype=dtype))
        model.load_head(Path(directory))
        model.requires_grad_(False)
        return model.eval()


class FeatureRewardModel:
    """r(x, y, u), by the base model's features of a response: one forward pass for all users.

    Args:
        lm: the base model as the reference, with the limits that the features were made under.
        fitted: the reward on its features.
        users: ids of the users in index order, the generic one not among them.
    """

    def __init__(
        self, lm: PersonalizedLM, fitted: HierarchicalReward, users: Sequence[str]
    ) -> None:
        self.lm = lm
        self.fitted = fitted
        self.users = list(users)
        self._index = UserIndex(users)

    def reward(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        users: Sequence[str | int | None],
        *,
        label: str = "reward",
    ) -> list[float]:
        """What each user thinks of each response; see `PersonalizedRewardModel.reward`.

        Raises:
            UserError: the lists differ in length, or a user is unknown.
        """
        _require_one_each(prompts, responses, users)
        if not prompts:
            return []
        encoder = self.lm.encoder
        asked = list(zip(map(canonical_prompt, prompts), responses, strict=True))
        # Features do not depend on the user: each text is computed once.
        texts: dict[str, list[str]] = {}
        for prompt, response in dict.fromkeys(asked):
            texts.setdefault(prompt, []).append(response)
        rows = [
            Row(GENERIC, encoder.prompt(prompt), [encoder.response(text) for text in found])
            for prompt, found in texts.items()
        ]
        features = self.lm.score(rows, label=label, features=True).features
        assert features is not None, "asked for"
        order = ((prompt, text) for prompt, found in texts.items() for text in found)
        place = {text: row for row, text in enumerate(order)}
        index = torch.tensor(self._index.find_all(users))
        return self.fitted(features[[place[text] for text in asked]], index).tolist()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, base: str | Path | None = None, dtype: str = "auto"
    ) -> FeatureRewardModel:
        """Load a directory written by `save_reward`, as `models/user_model/reward_model`.

        Args:
            directory: the directory.
            base: directory of the base model, if it is no longer where it was.
            dtype: of the base model's weights; see `model.dtype` in `params.yaml`.

        Raises:
            UserError: something is missing, damaged or was made by a newer version.
        """
        directory = Path(directory)
        fitted, card = load_reward(directory)
        path = Path(base) if base else Path(os.path.normpath(directory / card["base"]["path"]))
        loaded = load_base(path, dtype)
        lm = PersonalizedLM.reference(loaded, Encoder(loaded.chat, **card["tokens"]))
        return cls(lm, fitted, card["users"])


def _require_one_each(
    prompts: Sequence[Any], responses: Sequence[Any], users: Sequence[Any]
) -> None:
    if not len(prompts) == len(responses) == len(users):
        raise UserError(
            f"{len(prompts)} prompts, {len(responses)} responses and {len(users)} users",
            fix="give one each",
        )


def score_held_out(
    model: PersonalizedRewardModel, test: pd.DataFrame, unseen: pd.DataFrame, *, label: str
) -> pd.DataFrame:
    """Reward differences chosen - rejected of held-out pairs, in the columns of scored pairs.

    Pairs of users that the model knows (`split` "test") are scored as these users and as the
    generic user, those of all others (`split` "unseen") as the generic user.

    Args:
        model: the reward model.
        test: prepared test pairs of the seen users.
        unseen: prepared pairs of the unseen users; those about test prompts count.
        label: shown with the progress.
    """
    pairs = pd.concat([test, unseen[unseen["prompt_split"] == "test"]], ignore_index=True)
    pairs = pairs.assign(user_index=pairs["user_id"].map(model.user_model.index))
    known = pairs["user_index"] != GENERIC
    encoder = model.lm.encoder
    parts = []
    for table, split, condition in (
        (pairs[known], "test", "user"),
        (pairs[known].assign(user_index=GENERIC), "test", "generic"),
        (pairs[~known], "unseen", "generic"),
    ):
        columns = [table[name] for name in ("user_index", "prompt", "chosen", "rejected")]
        rows = [
            Row(index, encoder.prompt(prompt, text), list(map(encoder.response, responses)))
            for text, index, prompt, *responses in zip(
                encoder.user_texts(table), *columns, strict=True
            )
        ]
        chosen, rejected = model.score(rows, label=label).view(len(rows), 2).unbind(-1)
        keys = table[["pair_id", "prompt_id", "user_id", "group"]]
        margin = (chosen - rejected).numpy()
        parts.append(keys.assign(split=split, condition=condition, margin=margin))
    return pd.concat(parts, ignore_index=True)
