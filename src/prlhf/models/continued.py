"""Going on from a trained model: its adapter and its user model, people matched by their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor

from prlhf.data import GENERIC
from prlhf.infra.errors import UserError
from prlhf.infra.io import sha256
from prlhf.models.base import BaseModel
from prlhf.models.lora import adapter_path
from prlhf.models.user_model import (
    CARD,
    ONE_ADAPTER,
    ClusterUserModel,
    GroupUserModel,
    IndividualUserModel,
    UserModel,
    build,
    load_user_model,
    read_card,
)

WHERE = "params.yaml: train.start_from"


def find_predecessor(path: Path, method: str) -> Path:
    """The directory of the model that a method goes on from.

    Args:
        path: a model directory, or one with several, each under its method's name.
        method: the method's name.

    Raises:
        UserError: there is none.
    """
    for directory in (path / method, path):
        if (directory / CARD).is_file():
            return directory
    problem = f"{path} holds no trained model, and no directory {method} with one"
    raise UserError(problem, where=WHERE, fix=f"copy models/{method} of an earlier run there")


@dataclass(frozen=True)
class Predecessor:
    """A trained model that another one goes on from.

    Attributes:
        directory: where it is.
        card: what it says of itself.
        user_model: its user model.
    """

    directory: Path
    card: dict[str, Any]
    user_model: UserModel

    @classmethod
    def load(cls, directory: Path, base: BaseModel) -> Predecessor:
        """Read a model directory.

        Args:
            directory: found by `find_predecessor`.
            base: the base model in use.

        Raises:
            UserError: it is a reward model, or was trained on another base model.
        """
        card = read_card(directory)
        if "method" not in card:
            raise UserError(f"{directory} is not a model that `train` made", where=WHERE)
        theirs = {key: value for key, value in card["base"].items() if key != "path"}
        if theirs != base.source:
            differing = sorted(
                key for key in {*theirs, *base.source} if theirs.get(key) != base.source.get(key)
            )
            problem = f"{directory} was trained on another base model ({', '.join(differing)})"
            raise UserError(problem, where=WHERE, fix=f"its own is {theirs.get('name', 'unknown')}")
        return cls(directory, card, load_user_model(directory))

    def user_model_for(self, start: UserModel, kind: str) -> UserModel:
        """The user model that training goes on with.

        A model without user embeddings leaves it to `start`, so that P-DPO may go on from DPO. A
        model that knows its users goes on knowing them, also where new data alone would show
        nothing to gain from it.

        Args:
            start: what training would start from otherwise: the people, and what is known of them.
            kind: the method's kind of user model.

        Raises:
            UserError: it is of another kind, or has another number of user tokens.
        """
        own = self.user_model.kind
        if own == start.kind == "group" or (own == "uniform" and start.kind != "group"):
            return start
        if own != kind:
            problem = f"{self.directory} is of kind {own}, and the method of kind {kind}"
            fix = "start from models/base, or from a model of that kind"
            raise UserError(problem, where=WHERE, fix=fix)
        if start.tokens and start.tokens != self.user_model.tokens:
            problem = f"{self.directory} has {self.user_model.tokens} tokens for a user"
            fix = f"set user_model.tokens to that, not {start.tokens}"
            raise UserError(problem, where=WHERE, fix=fix)
        return continued(start, self.user_model)

    def load_adapter(self, lm: PeftModel, group: str | None = None) -> None:
        """Load the adapter into one of the same shape, which stays trainable.

        Args:
            lm: the base model with a new adapter, the active one.
            group: whose adapter, if each known group has one. A group that is new keeps the new
                adapter.

        Raises:
            UserError: its rank, scale or layers are others.
        """
        name = ONE_ADAPTER
        if isinstance(self.user_model, GroupUserModel):
            if group not in self.user_model.groups:
                return
            name = self.user_model.adapters[self.user_model.groups.index(group)]
        path = adapter_path(self.directory, name)
        if not (path / "adapter_config.json").is_file():
            raise UserError("no adapter here", where=path, fix="copy the whole model directory")
        theirs = cast(LoraConfig, LoraConfig.from_pretrained(str(path)))
        own = cast(LoraConfig, lm.peft_config[ONE_ADAPTER])
        for key, ours, given in (
            ("r", own.r, theirs.r),
            ("alpha", own.lora_alpha, theirs.lora_alpha),
            ("targets", sorted(own.target_modules or ()), sorted(theirs.target_modules or ())),
        ):
            if ours != given:
                problem = f"is {_listed(ours)}, but the adapter in {path} has {_listed(given)}"
                fix = "set it to that, or train.start_from to models/base"
                raise UserError(problem, where=f"params.yaml: optimizer.lora.{key}", fix=fix)
        set_peft_model_state_dict(lm, load_peft_weights(str(path), device="cpu"))

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """What a model that goes on from it records: its name, its hash and its own lineage."""
        record = {"name": self.card["method"], "sha256": _content_hash(self.directory)}
        if "started_from" in self.card:
            record["started_from"] = self.card["started_from"]
        return record


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _content_hash(directory: Path) -> str:
    """Hash of all files of a model directory but its model card, with their names."""
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        if file.name != "README.md":
            digest.update(f"{file.relative_to(directory).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


# -- users ---------------------------------------------------------------------------------------


@torch.no_grad()
def with_users(trained: UserModel, users: Sequence[str]) -> UserModel:
    """The same user model for other people: who is known keeps their row, strangers are generic.

    Args:
        trained: a user model with embeddings.
        users: ids in the new index order; those of `trained` who are not among them are dropped.
    """
    model = build(users, trained.config())
    known = torch.tensor([GENERIC, *(trained.index(user) for user in users)])
    shared = {id(parameter) for parameter in trained.dense_parameters()}
    theirs = dict(trained.state_dict(keep_vars=True))
    for name, values in model.state_dict(keep_vars=True).items():
        values.copy_(theirs[name] if id(theirs[name]) in shared else theirs[name][known])
    if isinstance(model, ClusterUserModel):
        # Row 0 of its table is not the generic user's.
        strangers = torch.nonzero(known[1:] == GENERIC)[:, 0] + 1
        model.place(strangers, model.generic_weights.expand(len(strangers), -1))
    return model


def continued(start: UserModel, trained: UserModel) -> UserModel:
    """The user model that goes on from `trained` with the people of `start`.

    Clusters of two pretrainings have nothing to do with each other. So a new person is not put into
    the trained clusters by their own pretrained mixture p, but by a ridge regression of the trained
    logits w, relative to the generic user's, on the pretrained mixtures of the people in both:
    `w = w_0 + (p - p_0) B`, with `|B|^2` penalised as much as one person's squared error. Without
    people in both, or without pretraining, everybody new starts as the generic user.

    Args:
        start: the people, and their pretrained mixtures, if it has any.
        trained: a user model with clusters.
    """
    model = with_users(trained, start.users)
    known = torch.tensor([trained.index(user) != GENERIC for user in start.users], dtype=torch.bool)
    if isinstance(model, ClusterUserModel | IndividualUserModel) and start.kind == model.kind:
        mixtures = _logits(start).softmax(1)
        features = mixtures[1:] - mixtures[:1]
        logits = _logits(model)
        old = features[known]
        moved = logits[1:][known] - logits[:1]
        penalty = torch.eye(features.shape[1])
        slopes = torch.linalg.solve(old.T @ old + penalty, old.T @ moved)
        new = torch.nonzero(~known)[:, 0]
        model.place(new + 1, logits[:1] + features[new] @ slopes)
    if start.prior is not None:
        model.set_prior(start.prior)
    return model


def _logits(model: UserModel) -> Tensor:
    """Logits of all users' mixtures, float32 [N + 1, K], row 0 the generic user's."""
    if isinstance(model, ClusterUserModel):
        table = model.weights.weight.detach()
        return torch.cat([model.generic_weights.detach()[None], table[1:]])
    return cast(IndividualUserModel, model).weights
