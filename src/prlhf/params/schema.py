"""The whole of `params.yaml`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from prlhf.params.data import DataParams, SplitParams, ValidateParams
from prlhf.params.evaluation import EvaluateParams, GenerateParams
from prlhf.params.judging import JudgeParams
from prlhf.params.launching import LaunchParams
from prlhf.params.model import ModelParams, TokenParams
from prlhf.params.section import Section, conflict, listed
from prlhf.params.training import (
    CompareParams,
    FitParams,
    MethodParams,
    PretrainParams,
    RewardTrainParams,
    TrainParams,
    UserModelParams,
)

RESERVED = ("base", "prompted", "user_model")
"""Directories under models/ that are no trained method's."""


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise PydanticCustomError("reserved", "reserved name")
    return name


MethodName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"), AfterValidator(_not_reserved)
]
"""Names a directory under models/."""


class Params(Section):
    """Every parameter of the pipeline; field by field the sections of `params.yaml`."""

    seed: int = Field(
        ge=0, lt=2**32, description="Seed of everything random: sampling, splits, training."
    )
    model: ModelParams
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    split: SplitParams
    tokens: TokenParams
    user_model: UserModelParams
    pretrain: PretrainParams
    methods: dict[MethodName, MethodParams] = Field(
        min_length=1,
        description="The models that can be trained, by name; `compare` says which of them are.",
    )
    compare: CompareParams
    train: TrainParams
    reward_models: list[str] = Field(
        description="The methods whose kind of user model gets a personalised reward model, too: "
        "keys of `methods`, each once; `[]` for none. `train_reward_model` runs for each, and "
        "writes `models/reward_<name>`."
    )
    train_reward_model: RewardTrainParams
    generate: GenerateParams
    judge: JudgeParams
    evaluate: EvaluateParams
    launch: LaunchParams

    @model_validator(mode="after")
    def _methods_are_known(self) -> Self:
        if unknown := [name for name in self.compare.trained if name not in self.methods]:
            raise conflict(
                "compare.trained",
                f"names {', '.join(unknown)}, but methods has {listed(self.methods)}",
            )
        return self

    @model_validator(mode="after")
    def _processes_share_the_batch(self) -> Self:
        processes = self.launch.processes * self.launch.machines
        sections: dict[str, FitParams] = {"train": self.train}
        if self.reward_models:
            sections["train_reward_model"] = self.train_reward_model
        for name, section in sections.items():
            if section.batch_size % (section.micro_batch_size * processes):
                raise conflict(
                    f"{name}.micro_batch_size",
                    f"{section.micro_batch_size} pairs in each of {processes} processes (launch) "
                    f"do not divide {name}.batch_size ({section.batch_size})",
                )
        return self

    @model_validator(mode="after")
    def _reward_models_are_known(self) -> Self:
        names = self.reward_models
        if unknown := [name for name in names if name not in self.methods]:
            raise conflict(
                "reward_models",
                f"names {', '.join(unknown)}, but methods has {listed(self.methods)}",
            )
        if grouped := [name for name in names if self.methods[name].kind == "group"]:
            raise conflict(
                "reward_models",
                f"names {grouped[0]}, whose kind is group: a reward model has one adapter",
            )
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise conflict("reward_models", f"names {', '.join(twice)} more than once")
        if taken := [name for name in names if f"reward_{name}" in self.methods]:
            raise conflict(
                "reward_models",
                f"would write models/reward_{taken[0]}, where the method reward_{taken[0]} is",
            )
        return self

    @model_validator(mode="after")
    def _reward_model_may_judge(self) -> Self:
        judge, name = self.judge, self.judge.trained_reward_model.method
        if "trained_reward_model" not in (judge.kind, *judge.also) or name is None:
            return self
        if name not in self.reward_models:
            raise conflict(
                "judge.trained_reward_model.method",
                f"names {name}, but reward_models has {listed(self.reward_models)}",
            )
        if self.methods[name].kind == "uniform" and not self.methods[name].text:
            raise conflict(
                "judge.trained_reward_model.method",
                f"names {name}, which knows no user from another (methods.{name}.kind is uniform)",
            )
        if judge.kind == "trained_reward_model" and self.train_reward_model.pairs == "train":
            raise conflict(
                "judge.kind",
                "must not be a reward model that learned from what the judged models were trained "
                "on, whose mistakes it would call right: set train_reward_model.pairs to held_out, "
                "or name it in judge.also, beside another judge",
            )
        return self
