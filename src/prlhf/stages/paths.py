"""Where the stages' files are, relative to the project directory: the outputs named in dvc.yaml."""

from pathlib import Path
from typing import Final

INGESTED: Final = Path("data/ingested")
PREPARED: Final = Path("data/prepared")
USERS: Final = PREPARED / "users.parquet"
REFERENCE: Final = Path("data/reference")
GENERATED: Final = Path("data/generated")
SCORES: Final = Path("data/scores")
JUDGED: Final = Path("data/judged")

MODELS: Final = Path("models")
BASE: Final = MODELS / "base"
PRETRAINED: Final = MODELS / "user_model"

REPORTS: Final = Path("reports")
CURVES: Final = REPORTS / "curves"
PLOTS: Final = REPORTS / "plots"
DATA_DOCS: Final = REPORTS / "data_docs"
REWARD_REPORTS: Final = REPORTS / "reward_models"
VALIDATION: Final = REPORTS / "validation.json"
REFERENCE_REPORT: Final = REPORTS / "reference.json"
PRETRAIN: Final = REPORTS / "pretrain.json"
METRICS: Final = REPORTS / "metrics.json"
EVALUATION: Final = REPORTS / "evaluation.json"
HEADLINE: Final = REPORTS / "headline.json"
REPORT: Final = REPORTS / "report.html"

FOLDERS: Final = (INGESTED.parent, GENERATED, SCORES, MODELS, REPORTS, CURVES, REWARD_REPORTS)
"""What the outputs lie in."""

PARAMETERS: Final = Path("params.yaml")
LOCK: Final = Path("dvc.lock")
DIAGNOSIS: Final = Path(".cache/validation")
"""What `validate` found in data that it refused. Not a DVC output: DVC would delete it."""


def split_table(split: str) -> Path:
    """The prepared pairs of a split: train, validation, test or unseen."""
    return PREPARED / f"{split}.parquet"


def method_directory(name: str) -> Path:
    """A trained method's adapter and user model (for `prompted`, just a card)."""
    return MODELS / name


def reward_model_directory(name: str) -> Path:
    """The reward model trained with a method's kind of user model."""
    return MODELS / f"reward_{name}"


def reward_scores(name: str) -> Path:
    """What that reward model says of answers and held-out pairs."""
    return SCORES / f"reward_{name}"
