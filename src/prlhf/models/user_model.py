"""User models: from a user's index to the soft-prompt embeddings in front of their prompts.

Index 0 is the generic user `u_0`, who stands for everybody unknown; seen users are 1..N. Three
kinds are the preference assumptions of the paper (section 4.2, examples 1 to 3); the fourth, known
groups, has adapters of the language model instead. Per-user tables are sparse, so that a gradient
and the row-wise optimiser that consumes it (`prlhf.training.optim`) touch the batch's users only.

A new kind is one subclass of `UserModel` here, and its name in `prlhf.params.MethodParams.kind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prlhf.data import GENERIC, index_users
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_json
from prlhf.models.base import BaseModel, opening_tokens

ONE_ADAPTER: Final = "default"
"""PEFT's name of an adapter that is the only one."""

FORMAT: Final = 1
CARD: Final = "user_model.json"
TABLES: Final = "user_model.safetensors"
PRETRAINED_CARD: Final = "pretrained.json"
PRETRAINED_WEIGHTS: Final = "weights.safetensors"


class UserModel(nn.Module, ABC):
    """f_implicit: user indices [B] -> embeddings [B, T, d], float32.

    Args:
        users: ids of the seen users; the user at position i has index i + 1.
        tokens: T, soft-prompt tokens of a user (0 for kinds without embeddings).
        dim: d, the language model's embedding width.
    """

    kind: ClassVar[str]
    has_embeddings: ClassVar[bool] = True
    """Whether there is a soft prompt that could be trained on its own."""

    def __init__(self, users: Sequence[str], tokens: int, dim: int) -> None:
        super().__init__()
        self.users = list(users)
        self.tokens = tokens
        self.dim = dim
        self._index = index_users(self.users)

    @classmethod
    @abstractmethod
    def start(cls, known: Pretrained, base: BaseModel, groups: Sequence[str | None]) -> Self:
        """The model that training starts from; `groups` are the seen users' groups, if known."""

    def index(self, user_id: str | None) -> int:
        """The index of a user by the caller's own id; the generic user's for strangers and None."""
        return GENERIC if user_id is None else self._index.get(user_id, GENERIC)

    @property
    def tells_apart(self) -> bool:
        """Whether different users can get different answers."""
        return self.tokens > 0

    @property
    def adapters(self) -> list[str]:
        """Names of the language model's adapters; all users share one, except in groups."""
        return [ONE_ADAPTER]

    def adapter(self, user_index: int) -> str:
        """Which of `adapters` serves a user."""
        return ONE_ADAPTER

    def forward(self, user_index: Tensor) -> Tensor:
        """Embeddings [B, T, d] of the users at `user_index`, int64 [B]; T = 0 unless overridden."""
        return torch.zeros(len(user_index), 0, self.dim, device=user_index.device)

    def penalty(self, user_index: Tensor) -> Tensor:
        """Regulariser [B] of each of the users at `user_index`, added to their pairs' losses."""
        return torch.zeros(len(user_index), device=user_index.device)

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Per-user tables, whose gradients are sparse."""
        return [cast(nn.Parameter, m.weight) for m in self.modules() if isinstance(m, nn.Embedding)]

    def dense_parameters(self) -> list[nn.Parameter]:
        """Parameters that all users share."""
        tables = {id(p) for p in self.sparse_parameters()}
        return [p for p in self.parameters() if id(p) not in tables]

    def config(self) -> dict[str, Any]:
        """Everything `build` needs besides the user ids."""
        return {"kind": self.kind, "tokens": self.tokens, "dim": self.dim}


class UniformUserModel(UserModel):
    """Everybody is the same (paper, example 1): no user tokens; P-DPO is then vanilla DPO."""

    kind = "uniform"
    has_embeddings = False

    def __init__(self, users: Sequence[str], tokens: int, dim: int) -> None:
        super().__init__(users, 0, dim)

    @classmethod
    def start(cls, known: Pretrained, base: BaseModel, groups: Sequence[str | None]) -> Self:
        return cls(known.users, 0, base.hidden_size)


class IndividualUserModel(UserModel):
    """Users differ one by one (example 2): `e_u = e_0 + o_u`, with `o_{u_0} = 0` throughout.

    Args:
        offset_penalty: coefficient of a user's mean squared offset.
    """

    kind = "individual"

    def __init__(
        self, users: Sequence[str], tokens: int, dim: int, *, offset_penalty: float = 0.0
    ) -> None:
        super().__init__(users, tokens, dim)
        self.offset_penalty = offset_penalty
        self.shared = nn.Parameter(torch.zeros(tokens, dim))
        self.offsets = nn.Embedding(len(users) + 1, tokens * dim, sparse=True)
        nn.init.zeros_(self.offsets.weight)

    @classmethod
    def start(cls, known: Pretrained, base: BaseModel, groups: Sequence[str | None]) -> Self:
        opening, directions = known.embeddings(base)
        model = cls(known.users, *opening.shape, offset_penalty=known.options["offset_penalty"])
        with torch.no_grad():
            model.shared.copy_(opening)
            if known.weights is not None:
                mixture = torch.softmax(known.weights, dim=1)
                # Relative to the generic user, whose offset is zero by definition.
                model.offsets.weight[1:] = (mixture[1:] - mixture[:1]) @ directions.flatten(1)
        return model

    def forward(self, user_index: Tensor) -> Tensor:
        return self.shared + self._offset(user_index).view(-1, self.tokens, self.dim)

    def penalty(self, user_index: Tensor) -> Tensor:
        return self.offset_penalty * self._offset(user_index).pow(2).mean(-1)

    def _offset(self, user_index: Tensor) -> Tensor:
        return _rows(self.offsets, user_index, self.shared.new_zeros(self.tokens * self.dim))

    def config(self) -> dict[str, Any]:
        return {**super().config(), "offset_penalty": self.offset_penalty}


class ClusterUserModel(UserModel):
    """Users are mixtures of K clusters (example 3): `e_u = sum_k softmax(w_u)_k V_k`.

    Every pair pulls the generic user's own weights towards those of its user, and so to the
    population's mean, at a cost that does not grow with the number of users.

    Args:
        clusters: K.
        generic_pull: coefficient of `|w_0 - w_u|^2`, in which w_u is held fixed.
    """

    kind = "cluster"

    def __init__(
        self,
        users: Sequence[str],
        tokens: int,
        dim: int,
        *,
        clusters: int,
        generic_pull: float = 0.0,
    ) -> None:
        super().__init__(users, tokens, dim)
        self.clusters = clusters
        self.generic_pull = generic_pull
        # The name that the tensor has in saved models.
        self.centres = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.generic_weights = nn.Parameter(torch.zeros(clusters))
        self.weights = nn.Embedding(len(users) + 1, clusters, sparse=True)
        nn.init.zeros_(self.weights.weight)

    @classmethod
    def start(cls, known: Pretrained, base: BaseModel, groups: Sequence[str | None]) -> Self:
        opening, directions = known.embeddings(base)
        pull = known.options["generic_pull"]
        model = cls(known.users, *opening.shape, clusters=len(directions), generic_pull=pull)
        with torch.no_grad():
            model.centres.copy_(opening + directions)
            if known.weights is not None:
                model.weights.weight[1:] = known.weights[1:]
                model.generic_weights.copy_(known.weights[0])
        return model

    def forward(self, user_index: Tensor) -> Tensor:
        mixture = torch.softmax(self._weights(user_index), dim=-1)
        return torch.einsum("bk,ktd->btd", mixture, self.centres)

    def penalty(self, user_index: Tensor) -> Tensor:
        gap = (self.generic_weights - self._weights(user_index).detach()).pow(2).sum(-1)
        return self.generic_pull * gap * (user_index != GENERIC)

    def _weights(self, user_index: Tensor) -> Tensor:
        return _rows(self.weights, user_index, self.generic_weights)

    def config(self) -> dict[str, Any]:
        return super().config() | {"clusters": self.clusters, "generic_pull": self.generic_pull}


class GroupUserModel(UserModel):
    """Users' groups are known, and each has its own adapter of the language model, but no tokens.

    This is the baseline for user models without that knowledge. The largest group's adapter serves
    the generic user and users of no group.

    Args:
        groups: names, the largest group first.
    """

    kind = "group"
    has_embeddings = False

    def __init__(self, users: Sequence[str], tokens: int, dim: int, *, groups: list[str]) -> None:
        super().__init__(users, 0, dim)
        self.groups = list(groups)
        self.members: Tensor  # position in `groups` of each user, row 0 the generic user's
        self.register_buffer("members", torch.zeros(len(users) + 1, dtype=torch.long))

    @classmethod
    def start(cls, known: Pretrained, base: BaseModel, groups: Sequence[str | None]) -> Self:
        """Users without a group count among the largest; `UserError` if no user has a group."""
        sizes = Counter(group for group in groups if group is not None)
        if not sizes:
            raise UserError(
                "kind group trains on known groups, but no user of this data set has one",
                where="params.yaml: methods",
                fix="map data.columns.group, or leave the method out of compare",
            )
        # By size, then by name, whatever the order of the users.
        names = sorted(sizes, key=lambda name: (-sizes[name], name))
        model = cls(known.users, 0, base.hidden_size, groups=names)
        members = [0 if group is None else names.index(group) for group in groups]
        model.members[1:] = torch.tensor(members, dtype=torch.long)
        return model

    @property
    def tells_apart(self) -> bool:
        return len(self.groups) > 1

    @property
    def adapters(self) -> list[str]:
        # Not the groups' own names: PEFT allows no dots in names.
        return [f"group_{position}" for position in range(len(self.groups))]

    def adapter(self, user_index: int) -> str:
        return self.adapters[int(self.members[user_index])]

    def config(self) -> dict[str, Any]:
        return {**super().config(), "groups": self.groups}


def _rows(table: nn.Embedding, user_index: Tensor, generic: Tensor) -> Tensor:
    """Rows [B, D] of `table`, `generic` [D] in place of row 0; the host waits for no result."""
    known = (user_index != GENERIC).unsqueeze(-1)
    return torch.where(known, table(user_index), generic)


KINDS: Final = {model.kind: model for model in UserModel.__subclasses__()}


def kind_of(name: str) -> type[UserModel]:
    """The class of a kind of user model; `UserError` if there is no such kind."""
    if name not in KINDS:
        fix = f"use one of {', '.join(KINDS)}"
        raise UserError(f"unknown kind of user model {name!r}", fix=fix)
    return KINDS[name]


def build(users: Sequence[str], config: dict[str, Any]) -> UserModel:
    """A user model from `UserModel.config()`, with its parameters at zero."""
    options = dict(config)
    return kind_of(options.pop("kind"))(users, **options)


@dataclass
class Pretrained:
    """What is known of the users before the language model is tuned.

    Attributes:
        users: ids of the seen users, in index order.
        options: `user_model.*` of params.yaml without `max_clusters`, and the `seed` of the
            clusters' offsets; `clusters` counts if there are no `weights`.
        weights: pretrained logits over clusters, float32 [N + 1, K], row 0 the generic user's; None
            without pretraining.
        trained: user models that were trained already (`soft_prompt`), by `variant`.
    """

    users: Sequence[str]
    options: Mapping[str, Any]
    weights: Tensor | None = None
    trained: dict[str, UserModel] = field(default_factory=dict)

    def initial(
        self, kind: str, base: BaseModel, *, text: bool = False, groups: Sequence[str | None] = ()
    ) -> UserModel:
        """The user model that a method of `kind`, which reads users' texts or not, starts from.

        Raises:
            UserError: the kind is unknown, or it needs `groups` and no user has one.
        """
        return self.trained.get(variant(kind, text)) or kind_of(kind).start(self, base, groups)

    def embeddings(self, base: BaseModel) -> tuple[Tensor, Tensor]:
        """The first embeddings of the generic user, [T, d], and offsets of clusters, [K, T, d].

        The former copy how the model's own prompts open (`opening_tokens`), which disturbs the base
        model least: on SmolLM2-135M-Instruct it moved the log-probability of a response by 0.9 nats
        on average, random vocabulary by 2.3, one repeated start token by 3.4. The offsets are
        random directions; without them cluster embeddings could never move apart.
        """
        generator = torch.Generator().manual_seed(self.options["seed"])
        table = base.model.get_input_embeddings().weight.detach().float().cpu()
        opening = table[opening_tokens(base.tokenizer, self.options["tokens"])]
        clusters = self.options["clusters"] if self.weights is None else self.weights.shape[1]
        directions = torch.randn(clusters, *opening.shape, generator=generator)
        return opening, directions * table.std() * self.options["init_scale"]

    def untrained(self, users: Sequence[str]) -> Pretrained:
        """The same sizes for other users, of whom nothing is known yet."""
        clusters = {} if self.weights is None else {"clusters": self.weights.shape[1]}
        return Pretrained(users, {**self.options, **clusters})

    def save(self, directory: Path) -> None:
        """Write to an existing directory."""
        card = {"users": list(self.users), "options": dict(self.options)}
        write_json(directory / PRETRAINED_CARD, {**card, "trained": sorted(self.trained)})
        if self.weights is not None:
            save_file({"weights": self.weights.contiguous()}, str(directory / PRETRAINED_WEIGHTS))
        for name, user_model in self.trained.items():
            (directory / name).mkdir()
            save_user_model(user_model, directory / name, {})


def variant(kind: str, text: bool) -> str:
    """Name of the user model shared by all methods of a kind that read users' texts, or do not."""
    return f"{kind}-text" if text else kind


def load_pretrained(directory: Path) -> Pretrained:
    """Read what `Pretrained.save` wrote."""
    card = read_json(directory / PRETRAINED_CARD)
    weights = directory / PRETRAINED_WEIGHTS
    return Pretrained(
        users=card["users"],
        options=card["options"],
        weights=load_file(str(weights))["weights"] if weights.is_file() else None,
        trained={name: load_user_model(directory / name) for name in card["trained"]},
    )


# -- files ---------------------------------------------------------------------------------------


def save_user_model(user_model: UserModel, directory: Path, about: dict[str, Any]) -> None:
    """Write tables and card, which also says what is in `about`, to an existing directory."""
    tables = {name: t.detach().cpu().contiguous() for name, t in user_model.state_dict().items()}
    save_file(tables, str(directory / TABLES), metadata={"format": "pt"})
    card = {**about, "users": user_model.users, "user_model": user_model.config()}
    write_json(directory / CARD, card)


def load_user_model(directory: Path) -> UserModel:
    """Read what `save_user_model` wrote, on the CPU."""
    card = read_card(directory)
    user_model = build(card["users"], card["user_model"])
    user_model.load_state_dict(load_file(str(directory / TABLES)))
    return user_model


def read_card(directory: Path) -> dict[str, Any]:
    """The card of a model directory; `UserError` if there is none that this version can read."""
    if not (directory / CARD).is_file():
        raise UserError(f"no {CARD} here", where=directory, fix="name a directory under models/")
    card: dict[str, Any] = read_json(directory / CARD)
    if card.get("format", FORMAT) > FORMAT:
        raise UserError("was written by a newer prlhf", where=directory / CARD, fix="upgrade prlhf")
    return card
