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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prlhf.data import GENERIC
from prlhf.data.users import UserIndex
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_json
from prlhf.models.start import Prior, Start

ONE_ADAPTER: Final = "default"
"""PEFT's name of an adapter that is the only one."""

FORMAT: Final = 2
CARD: Final = "user_model.json"
TABLES: Final = "user_model.safetensors"


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
        self._index = UserIndex(self.users)
        self.prior: Prior | None = None
        self.share: Tensor  # of a user's prior that one of their pairs bears
        self.register_buffer("share", torch.zeros(len(self.users) + 1), persistent=False)

    @classmethod
    @abstractmethod
    def start(cls, known: Start, groups: Sequence[str | None]) -> Self:
        """The model that training starts from; `groups` are the seen users' groups, if known."""

    def set_prior(self, prior: Prior) -> None:
        """Have `penalty` draw users to where they are, when training begins. It is not saved."""
        self.prior = prior
        share = torch.where(prior.pairs > 0, 1 / prior.pairs, 0.0)
        share[GENERIC] = 0
        self.share.copy_(share)

    def index(self, user_id: object) -> int:
        """The index of a user by the caller's own id; the generic user's for strangers and None."""
        return self._index.find(user_id)

    def indices(self, users: Iterable[object]) -> list[int]:
        """The indices of users who are to be answered, None for the generic one.

        `UserError` if one is a stranger to a model that tells its users apart.
        """
        if self.users and self.tells_apart:
            return self._index.find_all(users)
        return [self._index.find(user) for user in users]

    @property
    def tells_apart(self) -> bool:
        """Whether different users can get different answers."""
        return self.has_embeddings

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
        """What the prior adds to the loss of a pair of each of the users at `user_index`, [B].

        Over all pairs of a user this sums to minus the log-density of the user's row, in nats. So
        it counts once for each user, and the more choices someone made, the less it weighs against
        them, however pairs are put into batches and however often a user is sampled.
        """
        return torch.zeros(len(user_index), device=user_index.device)

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Per-user tables, whose gradients are sparse."""
        return [cast(nn.Parameter, m.weight) for m in self.modules() if isinstance(m, nn.Embedding)]

    def dense_parameters(self) -> list[nn.Parameter]:
        """Parameters that all users share."""
        tables = {id(p) for p in self.sparse_parameters()}
        return [p for p in self.parameters() if id(p) not in tables]

    def logits(self) -> list[nn.Parameter]:
        """The parameters that are logits of mixtures, not embeddings, and so have no unit."""
        return []

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
    def start(cls, known: Start, groups: Sequence[str | None]) -> Self:
        return cls(known.users, 0, known.opening.shape[1])


class MixtureUserModel(UserModel):
    """Users are mixtures of a few clusters, exactly or on average.

    Args:
        clusters: K.
        trust: how much users differ from the generic user: from 1, as they were trained, to 0, not
            at all.
    """

    def __init__(
        self, users: Sequence[str], tokens: int, dim: int, *, clusters: int, trust: float = 1.0
    ) -> None:
        super().__init__(users, tokens, dim)
        self.clusters = clusters
        self.trust = trust

    def set_prior(self, prior: Prior) -> None:
        super().set_prior(prior)
        self.trust = 1.0  # to be found anew

    @abstractmethod
    def place(self, user_index: Tensor, weights: Tensor) -> None:
        """Put users, int64 [B], where their mixtures, logits [B, K], are on average."""

    @property
    def tells_apart(self) -> bool:
        return self.trust > 0

    def config(self) -> dict[str, Any]:
        return {**super().config(), "clusters": self.clusters, "trust": self.trust}


class IndividualUserModel(MixtureUserModel):
    """Users differ one by one (example 2): `e_u = e_0 + o_u`, with `o_{u_0} = 0` throughout.

    An offset is the mean of the user's kind and a part of the user's own,
    `o_u = sum_k (softmax(w_u) - softmax(w_0))_k D_k + d_u`. The directions D_k are shared and
    trained, the w_u are what the pretraining found. So users with few choices live where similar
    ones do, and those who were never trained on (`d_u = 0`) as well.
    """

    kind = "individual"

    def __init__(
        self, users: Sequence[str], tokens: int, dim: int, *, clusters: int, trust: float = 1.0
    ) -> None:
        super().__init__(users, tokens, dim, clusters=clusters, trust=trust)
        self.shared = nn.Parameter(torch.zeros(tokens, dim))
        self.directions = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.offsets = nn.Embedding(len(users) + 1, tokens * dim, sparse=True)
        nn.init.zeros_(self.offsets.weight)
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(len(users) + 1, clusters))

    @classmethod
    def start(cls, known: Start, groups: Sequence[str | None]) -> Self:
        model = cls(known.users, *known.opening.shape, clusters=len(known.directions))
        with torch.no_grad():
            model.shared.copy_(known.opening)
            model.directions.copy_(known.directions)
            model.weights.copy_(known.weights)
        return model

    @torch.no_grad()
    def place(self, user_index: Tensor, weights: Tensor) -> None:
        self.weights[user_index] = weights
        self.offsets.weight[user_index] = 0

    def forward(self, user_index: Tensor) -> Tensor:
        # Relative to the generic user, whose offset is zero by definition.
        mixture = self.weights[user_index].softmax(-1) - self.weights[GENERIC].softmax(-1)
        offset = mixture @ self.directions.flatten(1) + self._own(user_index)
        return self.shared + self.trust * offset.view(-1, self.tokens, self.dim)

    def penalty(self, user_index: Tensor) -> Tensor:
        if self.prior is None or self.prior.offset_spread is None:
            return super().penalty(user_index)
        distance = self._own(user_index).pow(2).sum(-1)
        return self.share[user_index] * distance / (2 * self.prior.offset_spread**2)

    def _own(self, user_index: Tensor) -> Tensor:
        return _rows(self.offsets, user_index, self.shared.new_zeros(self.tokens * self.dim))


class ClusterUserModel(MixtureUserModel):
    """Users are mixtures of K clusters (example 3): `e_u = sum_k softmax(w_u)_k V_k`.

    The generic user has weights of its own, which are drawn to the mean of the users'.
    """

    kind = "cluster"

    def __init__(
        self, users: Sequence[str], tokens: int, dim: int, *, clusters: int, trust: float = 1.0
    ) -> None:
        super().__init__(users, tokens, dim, clusters=clusters, trust=trust)
        # The name that the tensor has in saved models.
        self.centres = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.generic_weights = nn.Parameter(torch.zeros(clusters))
        self.weights = nn.Embedding(len(users) + 1, clusters, sparse=True)
        nn.init.zeros_(self.weights.weight)
        self.starts: Tensor  # of the weights
        self.register_buffer("starts", torch.zeros(len(users) + 1, clusters), persistent=False)

    @classmethod
    def start(cls, known: Start, groups: Sequence[str | None]) -> Self:
        model = cls(known.users, *known.opening.shape, clusters=len(known.directions))
        with torch.no_grad():
            model.centres.copy_(known.opening + known.directions)
            model.generic_weights.copy_(known.weights[GENERIC])
        seen = torch.arange(1, len(known.users) + 1)
        model.place(seen, known.weights[seen])
        return model

    @torch.no_grad()
    def place(self, user_index: Tensor, weights: Tensor) -> None:
        self.weights.weight[user_index] = weights

    def set_prior(self, prior: Prior) -> None:
        super().set_prior(prior)
        self.starts.copy_(self.weights.weight.detach())

    @property
    def tells_apart(self) -> bool:
        return super().tells_apart and self.clusters > 1

    def logits(self) -> list[nn.Parameter]:
        return [cast(nn.Parameter, self.weights.weight), self.generic_weights]

    def forward(self, user_index: Tensor) -> Tensor:
        own, generic = self._weights(user_index).softmax(-1), self.generic_weights.softmax(-1)
        # Exactly the one or the other where the trust is 1 or 0.
        mixture = torch.lerp(generic, own, self.trust)
        return torch.einsum("bk,ktd->btd", mixture, self.centres)

    def penalty(self, user_index: Tensor) -> Tensor:
        if self.prior is None:
            return super().penalty(user_index)
        weights = self._weights(user_index)
        # The mean is the users' affair: it moves the generic user, and not the users.
        cost = self.prior.generic_pull * (self.generic_weights - weights.detach()).pow(2).sum(-1)
        if self.prior.weights_spread is not None:
            distance = (weights - self.starts[user_index]).pow(2).sum(-1)
            cost = cost + distance / (2 * self.prior.weights_spread**2)
        return self.share[user_index] * cost

    def _weights(self, user_index: Tensor) -> Tensor:
        return _rows(self.weights, user_index, self.generic_weights)


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
    def start(cls, known: Start, groups: Sequence[str | None]) -> Self:
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
        model = cls(known.users, 0, known.opening.shape[1], groups=names)
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


KINDS: Final[dict[str, type[UserModel]]] = {
    model.kind: model
    for model in (UniformUserModel, IndividualUserModel, ClusterUserModel, GroupUserModel)
}


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
    if (found := card.get("format", FORMAT)) != FORMAT:
        age = "a newer" if found > FORMAT else "an older"
        fix = "use that version, or train it again"
        raise UserError(f"was written by {age} prlhf", where=directory / CARD, fix=fix)
    return card
