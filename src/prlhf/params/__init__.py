"""Typed `params.yaml`: one frozen model per section, checked as a whole before any stage starts.

A stage gets the sections that it declares in `dvc.yaml`, where DVC tracks their values: no stage
depends on this package, so that a new key in one section re-runs nothing else.
"""

from prlhf.params.data import ColumnParams as ColumnParams
from prlhf.params.data import DataParams as DataParams
from prlhf.params.data import HubParams as HubParams
from prlhf.params.data import PrismParams as PrismParams
from prlhf.params.data import SplitParams as SplitParams
from prlhf.params.data import TldrParams as TldrParams
from prlhf.params.data import ValidateParams as ValidateParams
from prlhf.params.evaluation import EvaluateParams as EvaluateParams
from prlhf.params.evaluation import FeatureRewardJudgeParams as FeatureRewardJudgeParams
from prlhf.params.evaluation import GenerateParams as GenerateParams
from prlhf.params.evaluation import JudgeKind as JudgeKind
from prlhf.params.evaluation import JudgeParams as JudgeParams
from prlhf.params.evaluation import LlmJudgeParams as LlmJudgeParams
from prlhf.params.evaluation import RewardModelJudgeParams as RewardModelJudgeParams
from prlhf.params.loading import load as load
from prlhf.params.schema import Params as Params
from prlhf.params.section import Section as Section
from prlhf.params.training import CompareParams as CompareParams
from prlhf.params.training import LaunchParams as LaunchParams
from prlhf.params.training import LoraParams as LoraParams
from prlhf.params.training import MethodParams as MethodParams
from prlhf.params.training import ModelParams as ModelParams
from prlhf.params.training import OptimizerParams as OptimizerParams
from prlhf.params.training import PretrainParams as PretrainParams
from prlhf.params.training import ReferenceParams as ReferenceParams
from prlhf.params.training import RewardTrainParams as RewardTrainParams
from prlhf.params.training import TokenizerParams as TokenizerParams
from prlhf.params.training import TokenParams as TokenParams
from prlhf.params.training import TrackParams as TrackParams
from prlhf.params.training import TrainParams as TrainParams
from prlhf.params.training import UserModelParams as UserModelParams
