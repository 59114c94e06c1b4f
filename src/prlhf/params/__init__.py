"""Typed `params.yaml`: one frozen model per section, checked whole before any stage starts.

Stages are handed the sections they declare in `dvc.yaml` and import these classes for annotations
only, so that a change here re-runs nothing by itself.
"""

from prlhf.params.data import (
    ColumnParams,
    DataParams,
    HubParams,
    PrismParams,
    SplitParams,
    TldrParams,
    ValidateParams,
)
from prlhf.params.evaluation import EvaluateParams, GenerateParams
from prlhf.params.judging import (
    JudgeParams,
    LlmJudgeParams,
    RewardJudgeParams,
    TrainedJudgeParams,
)
from prlhf.params.launching import LaunchParams
from prlhf.params.loading import load
from prlhf.params.model import ModelParams, TokenParams
from prlhf.params.schema import Params
from prlhf.params.section import Section
from prlhf.params.training import (
    CompareParams,
    LoraParams,
    MethodParams,
    PretrainParams,
    RewardTrainParams,
    TrainParams,
    UserModelParams,
)

__all__ = [
    "ColumnParams",
    "CompareParams",
    "DataParams",
    "EvaluateParams",
    "GenerateParams",
    "HubParams",
    "JudgeParams",
    "LaunchParams",
    "LlmJudgeParams",
    "LoraParams",
    "MethodParams",
    "ModelParams",
    "Params",
    "PretrainParams",
    "PrismParams",
    "RewardJudgeParams",
    "RewardTrainParams",
    "Section",
    "SplitParams",
    "TldrParams",
    "TokenParams",
    "TrainParams",
    "TrainedJudgeParams",
    "UserModelParams",
    "ValidateParams",
    "load",
]
