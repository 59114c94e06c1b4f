"""What is known of the users before the language model is tuned, and what training starts from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.infra.io import read_json, write_json
from prlhf.models.base import BaseModel
from prlhf.models.chat import ChatTokenizer
from prlhf.models.start import Prior, Start
from prlhf.models.user_model import (
    UniformUserModel,
    UserModel,
    kind_of,
    load_user_model,
    save_user_model,
)

CARD: Final = "pretrained.json"
TABLES: Final = "pretrained.safetensors"


@dataclass
class Pretrained:
    """What is known of the users before the language model is tuned.

    Attributes:
        users: ids of the seen users, in index order.
        options: `user_model.*` of params.yaml without `max_clusters`, and the `seed` of the
            clusters' offsets; `clusters` counts if there are no `weights`.
        pairs: each user's training pairs, added up by weight, float32 [N + 1]; 0 for users who are
            placed but not trained.
        weights: pretrained logits over clusters, float32 [N + 1, K], row 0 the generic user's; None
            without pretraining.
        personal: whether there is something to gain from telling users apart. Otherwise all of them
            are the generic user, and a user model of any kind is a uniform one.
        trained: user models that were trained already (`soft_prompt`), by `variant`.
    """

    users: Sequence[str]
    options: Mapping[str, Any]
    pairs: Tensor
    weights: Tensor | None = None
    personal: bool = True
    trained: dict[str, UserModel] = field(default_factory=dict)

    def initial(
        self, kind: str, base: BaseModel, *, text: bool = False, groups: Sequence[str | None] = ()
    ) -> UserModel:
        """The user model that a method of `kind`, which reads users' texts or not, starts from.

        Raises:
            UserError: the kind is unknown, or it needs `groups` and no user has one.
        """
        chosen = kind_of(kind)
        if chosen.has_embeddings and not self.personal:
            chosen = UniformUserModel
        name = variant(kind, text)
        model = self.trained.get(name) or chosen.start(self.start(base), groups)
        spread = self.options["offset_spread"]
        prior = Prior(
            self.pairs,
            weights_spread=self.options["weights_spread"],
            offset_spread=None if spread is None else spread * base.embedding_std,
            generic_pull=self.options["generic_pull"],
        )
        model.set_prior(prior)
        return model

    def start(self, base: BaseModel) -> Start:
        """The first embeddings of the generic user, offsets of the clusters, and who is where.

        The generic user's copy how the model's own prompts open (`opening_tokens`), which disturbs
        the base model least: on SmolLM2-135M-Instruct it moved the log-probability of a response by
        0.9 nats on average, random vocabulary by 2.3, one repeated start token by 3.4. The offsets
        are random directions; without them cluster embeddings could never move apart.
        """
        generator = torch.Generator().manual_seed(self.options["seed"])
        opening = base.embed(opening_tokens(base.chat, self.options["tokens"]))
        weights = self.weights
        if weights is None:
            weights = torch.zeros(len(self.users) + 1, self.options["clusters"])
        directions = torch.randn(weights.shape[1], *opening.shape, generator=generator)
        directions *= base.embedding_std * self.options["init_scale"]
        return Start(self.users, opening, directions, weights)

    def untrained(self, users: Sequence[str], pairs: Tensor) -> Pretrained:
        """The same sizes for other users, of whom nothing is known yet but how many `pairs`."""
        clusters = {} if self.weights is None else {"clusters": self.weights.shape[1]}
        return Pretrained(users, {**self.options, **clusters}, pairs, personal=self.personal)

    def save(self, directory: Path) -> None:
        """Write to an existing directory."""
        card = {
            "users": list(self.users),
            "options": dict(self.options),
            "personal": self.personal,
            "trained": sorted(self.trained),
        }
        write_json(directory / CARD, card)
        tables = {"pairs": self.pairs}
        if self.weights is not None:
            tables["weights"] = self.weights.contiguous()
        save_file(tables, str(directory / TABLES))
        for name, user_model in self.trained.items():
            (directory / name).mkdir()
            save_user_model(user_model, directory / name, {})


def opening_tokens(chat: ChatTokenizer, count: int) -> list[int]:
    """The first `count` tokens that all prompts share, repeated from the start if there are fewer.

    Without a chat template: the beginning-of-sequence token (or else the end-of-sequence token).
    """
    tokenizer = chat.tokenizer
    if tokenizer.chat_template:
        one, other = (
            chat.conversation([{"role": "user", "content": text}]) for text in ("a", "1 b")
        )
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        if shared := [token for token, _ in same]:
            return list(itertools.islice(itertools.cycle(shared), count))
    bos = tokenizer.bos_token_id
    return [int(tokenizer.eos_token_id if bos is None else bos)] * count


def variant(kind: str, text: bool) -> str:
    """Name of the user model shared by all methods of a kind that read users' texts, or do not."""
    return f"{kind}-text" if text else kind


def pairs_of(table: pd.DataFrame, users: int) -> Tensor:
    """How many pairs each of N users has in a prepared table, by weight, float32 [N + 1]."""
    counts = np.bincount(table["user_index"], table["weight"], minlength=users + 1)
    return torch.from_numpy(counts).float()


def load_pretrained(directory: Path) -> Pretrained:
    """Read what `Pretrained.save` wrote."""
    card = read_json(directory / CARD)
    tables = load_file(str(directory / TABLES))
    return Pretrained(
        users=card["users"],
        options=card["options"],
        pairs=tables["pairs"],
        weights=tables.get("weights"),
        personal=card["personal"],
        trained={name: load_user_model(directory / name) for name in card["trained"]},
    )
