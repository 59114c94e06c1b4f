"""The whole of `params.yaml`."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from prlhf.params.data import DataParams, SplitParams, ValidateParams
from prlhf.params.evaluation import EvaluateParams, GenerateParams, JudgeParams
from prlhf.params.section import Section, conflict, require_distinct, require_known
from prlhf.params.training import (
    CompareParams,
    LaunchParams,
    MethodParams,
    ModelParams,
    OptimizerParams,
    PretrainParams,
    ReferenceParams,
    RewardTrainParams,
    TokenParams,
    TrackParams,
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

    seed: int = Field(ge=0, lt=2**32)
    """Seed of everything random: sampling, splits, training."""
    model: ModelParams
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    split: SplitParams
    tokens: TokenParams
    reference: ReferenceParams
    user_model: UserModelParams
    pretrain: PretrainParams
    methods: dict[MethodName, MethodParams] = Field(min_length=1)
    """What can be trained, by a name of your choice. `compare` says which of them are."""
    compare: CompareParams
    train: TrainParams
    optimizer: OptimizerParams
    reward_models: list[str]
    """Methods whose user model gets a reward model, too; [] for none. They are keys of `methods`,
    each once. `train_reward_model` runs for each, and writes `models/reward_<name>`."""
    train_reward_model: RewardTrainParams
    generate: GenerateParams
    judge: JudgeParams
    evaluate: EvaluateParams
    launch: LaunchParams
    track: TrackParams

    @model_validator(mode="after")
    def _methods_are_known(self) -> Self:
        require_known("compare.trained", self.compare.trained, "methods", self.methods)
        return self

    @model_validator(mode="after")
    def _processes_share_the_batch(self) -> Self:
        processes = self.launch.processes * self.launch.machines
        batch, micro_batch = self.optimizer.batch_size, self.optimizer.micro_batch_size
        if batch == "auto":
            if processes.bit_count() != 1:
                raise conflict(
                    "optimizer.batch_size",
                    f"auto is a power of two, which {processes} processes (launch) cannot share: "
                    "give a number",
                )
        elif batch % (micro_batch * processes):
            raise conflict(
                "optimizer.micro_batch_size",
                f"{micro_batch} pairs in each of {processes} processes (launch) do not divide "
                f"optimizer.batch_size ({batch})",
            )
        return self

    @model_validator(mode="after")
    def _features_are_kept_for_who_reads_them(self) -> Self:
        readers = {
            "pretrain.method is reward": self.pretrain.method == "reward",
            "feature_reward judges": "feature_reward" in (self.judge.kind, *self.judge.also),
        }
        if not self.reference.features and (wanted := [why for why in readers if readers[why]]):
            raise conflict("reference.features", f"must be true, because {wanted[0]}")
        return self

    @model_validator(mode="after")
    def _reward_models_are_known(self) -> Self:
        names = self.reward_models
        require_known("reward_models", names, "methods", self.methods)
        if grouped := [name for name in names if self.methods[name].kind == "group"]:
            raise conflict(
                "reward_models",
                f"names {grouped[0]}, whose kind is group: a reward model has one adapter",
            )
        require_distinct("reward_models", names)
        if taken := [name for name in names if f"reward_{name}" in self.methods]:
            raise conflict(
                "reward_models",
                f"would write models/reward_{taken[0]}, where the method reward_{taken[0]} is",
            )
        return self

    @model_validator(mode="after")
    def _reward_model_may_judge(self) -> Self:
        judge, name = self.judge, self.judge.reward_model.method
        if "reward_model" not in (judge.kind, *judge.also) or name is None:
            return self
        require_known("judge.reward_model.method", [name], "reward_models", self.reward_models)
        if self.methods[name].kind == "uniform" and not self.methods[name].text:
            raise conflict(
                "judge.reward_model.method",
                f"names {name}, which knows no user from another (methods.{name}.kind is uniform)",
            )
        if judge.kind == "reward_model" and self.train_reward_model.pairs == "train":
            raise conflict(
                "judge.kind",
                "must not be a reward model that learned from the judged models' own training "
                "pairs, because it would share their mistakes: set train_reward_model.pairs to "
                "held_out, or name it in judge.also, beside another judge",
            )
        return self

    @model_validator(mode="after")
    def _gains_are_between_compared_methods(self) -> Self:
        compared = self.compare.all
        require_known("evaluate.baseline", [self.evaluate.baseline], "compare.all", compared)
        require_known("evaluate.subject", [self.evaluate.subject], "compare.all", compared)
        if self.evaluate.subject == self.evaluate.baseline:
            raise conflict("evaluate.subject", "must be another method than evaluate.baseline")
        return self
