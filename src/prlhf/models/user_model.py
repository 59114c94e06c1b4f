"""User models: from a user's index to the soft-prompt embeddings in front of their prompts.

Index 0 is the generic user `u_0`, which stands for everybody unknown; seen users are 1..N. Three
preference assumptions are those of the paper (section 4.2, examples 1 to 3); the fourth, known
groups, has no embeddings but adapters of the language model. Per-user tables
are `nn.Embedding(sparse=True)`, so that a step's gradient, and the row-wise optimiser that consumes
it (`prlhf.training.optim`), touch the rows of the batch's users and no others. Their row 0 stays
zero: it lets users and generic user mix in one lookup without a look at the indices on the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

GENERIC = 0

ONE_ADAPTER = "default"
"""PEFT's name of an adapter that is the only one."""


class UserModel(nn.Module, ABC):
    """f_implicit: user indices [B] -> embeddings [B, T, d], float32.

    Args:
        users: ids of the seen users; the user at position i has index i + 1.
        tokens: T, soft-prompt tokens a user (0 for `uniform`).
        dim: d, the language model's embedding width.
    """

    kind: ClassVar[str]

    def __init__(self, users: Sequence[str], tokens: int, dim: int) -> None:
        super().__init__()
        self.users = list(users)
        self.tokens = tokens
        self.dim = dim
        self._index = {user: i for i, user in enumerate(self.users, start=1)}

    def index(self, user_id: str | None) -> int:
        """The index of a user by the caller's own id; the generic one for strangers and None."""
        return GENERIC if user_id is None else self._index.get(user_id, GENERIC)

    @property
    def tells_apart(self) -> bool:
        """Whether the model can answer one user otherwise than another."""
        return self.tokens > 0

    @property
    def adapters(self) -> list[str]:
        """Names of the language model's adapters; users share one unless they are of groups."""
        return [ONE_ADAPTER]

    def adapter(self, user_index: int) -> str:
        """Which of `adapters` serves a user."""
        return ONE_ADAPTER

    @abstractmethod
    def forward(self, user_index: Tensor) -> Tensor:
        """Embeddings [B, T, d] of the users at `user_index`, int64 [B]."""

    def penalty(self, user_index: Tensor) -> Tensor:
        """Regulariser of each of the users at `user_index`, [B], added to their pairs' losses."""
        return torch.zeros(len(user_index), device=user_index.device)

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Per-user tables, whose gradients are sparse."""
        tables = (m for m in self.modules() if isinstance(m, nn.Embedding))
        return [cast(nn.Parameter, table.weight) for table in tables]

    def dense_parameters(self) -> list[nn.Parameter]:
        """Parts that all users share."""
        tables = {id(p) for p in self.sparse_parameters()}
        return [p for p in self.parameters() if id(p) not in tables]

    def config(self) -> dict[str, Any]:
        """Everything `build` needs besides the user ids."""
        return {"kind": self.kind, "tokens": self.tokens, "dim": self.dim}


class UniformUserModel(UserModel):
    """Everybody is the same (paper, example 1): no user tokens; P-DPO is then vanilla DPO."""

    kind = "uniform"

    def __init__(self, users: Sequence[str], tokens: int, dim: int) -> None:
        super().__init__(users, 0, dim)

    def forward(self, user_index: Tensor) -> Tensor:
        return torch.zeros(len(user_index), 0, self.dim, device=user_index.device)


class IndividualUserModel(UserModel):
    """Users differ one by one (example 2): `e_u = e_0 + o_u`, with `o_{u_0} = 0` for good.

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

    def forward(self, user_index: Tensor) -> Tensor:
        return self.shared + self._offset(user_index).view(-1, self.tokens, self.dim)

    def penalty(self, user_index: Tensor) -> Tensor:
        return self.offset_penalty * self._offset(user_index).pow(2).mean(-1)

    def _offset(self, user_index: Tensor) -> Tensor:
        return _rows(self.offsets, user_index, self.shared.new_zeros(self.tokens * self.dim))

    def config(self) -> dict[str, Any]:
        return {**super().config(), "offset_penalty": self.offset_penalty}


class ClusterUserModel(UserModel):
    """Users are mixtures of K kinds (example 3): `e_u = sum_k softmax(w_u)_k V_k`.

    The generic user has weights of its own, pulled to the weights of the users who come by, and so
    to the population's mean, at a cost that does not grow with the number of users.

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
        self.centres = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.generic_weights = nn.Parameter(torch.zeros(clusters))
        self.weights = nn.Embedding(len(users) + 1, clusters, sparse=True)
        nn.init.zeros_(self.weights.weight)

    def forward(self, user_index: Tensor) -> Tensor:
        mixture = torch.softmax(self._weights(user_index), dim=-1)
        return torch.einsum("bk,ktd->btd", mixture, self.centres)

    def penalty(self, user_index: Tensor) -> Tensor:
        towards = self._weights(user_index).detach()
        gap = (self.generic_weights - towards).pow(2).sum(-1)
        return self.generic_pull * gap * (user_index != GENERIC)

    def _weights(self, user_index: Tensor) -> Tensor:
        return _rows(self.weights, user_index, self.generic_weights)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "clusters": self.clusters,
            "generic_pull": self.generic_pull,
        }


class GroupUserModel(UserModel):
    """Groups of users are known, and each has an adapter of the language model to itself.

    No user tokens: a model for every group, and what a user model without that knowledge is to be
    measured against. The generic user is served by the adapter of the largest group.

    Args:
        groups: names, the largest group first.
    """

    kind = "group"

    def __init__(
        self, users: Sequence[str], tokens: int, dim: int, *, groups: Sequence[str]
    ) -> None:
        super().__init__(users, 0, dim)
        self.groups = list(groups)
        self.members: Tensor
        # Position in `groups` of each user, row 0 the generic user's.
        self.register_buffer("members", torch.zeros(len(users) + 1, dtype=torch.long))

    @property
    def tells_apart(self) -> bool:
        return len(self.groups) > 1

    @property
    def adapters(self) -> list[str]:
        # PEFT takes no dots in names, and groups may be called anything.
        return [f"group_{position}" for position in range(len(self.groups))]

    def adapter(self, user_index: int) -> str:
        return self.adapters[int(self.members[user_index])]

    def forward(self, user_index: Tensor) -> Tensor:
        return torch.zeros(len(user_index), 0, self.dim, device=user_index.device)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "groups": self.groups}


def _rows(table: nn.Embedding, user_index: Tensor, generic: Tensor) -> Tensor:
    """Rows [B, D] of `table`, with `generic` [D] in place of row 0."""
    known = (user_index != GENERIC).unsqueeze(-1)
    return torch.where(known, table(user_index), generic)


KINDS: dict[str, type[UserModel]] = {
    model.kind: model
    for model in (UniformUserModel, IndividualUserModel, ClusterUserModel, GroupUserModel)
}


def build(users: Sequence[str], config: dict[str, Any]) -> UserModel:
    """A user model from `UserModel.config()`, with its parameters at zero."""
    options = dict(config)
    return KINDS[options.pop("kind")](users, **options)
