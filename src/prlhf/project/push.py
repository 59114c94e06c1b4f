"""Sending a trained model to a repository on the Hugging Face hub.

What goes there is the model directory with the figures of the last evaluation in its model card,
without what is about single people: their ids, and what was learned of each alone. What all people
share stays, so that the copy serves everybody as the generic user.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from dvc.dependency import ParamsDependency
from dvc.output import Output
from dvc.repo import Repo
from huggingface_hub import EvalResult, HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # whichever package it is from
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_text
from prlhf.metrics.reading import figure, interval, look_up, number, percent, percent_range
from prlhf.models.continued import with_users
from prlhf.models.model_card import MODEL_CARD, model_card
from prlhf.models.user_model import load_user_model, read_card, save_user_model
from prlhf.project import pipeline
from prlhf.stages.paths import HEADLINE, METRICS, method_directory

SHARES: Final = {
    "accuracy": "Held-out choices predicted, mean over users",
    "worst_user": "The same, worst-served user",
    "worst_tenth": "The same, worst-served tenth of users",
    "unseen": "The same, users whom it does not know",
    "win_rate": "Comparisons won against the baseline",
    "broken": "Empty or degenerate answers",
    "unfinished": "Answers cut at the limit of their length",
}
NUMBERS: Final = {
    "words": "Words per answer",
    "nll": "Nats per token of its answers, under the base model",
}
"""What the key figures of headline.json are; further ones go by their keys."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation says of a model: to print, and for the hub; or why it says nothing."""

    figures: list[tuple[str, str]]
    results: list[EvalResult]
    note: str = ""


@contextmanager
def parcel(name: str, repo: str, *, user_ids: bool) -> Iterator[tuple[Path, str]]:
    """What is to be sent, in a temporary directory.

    Args:
        name: of the model: a method, or reward_<method>.
        repo: where it is to go, org/name.
        user_ids: whether the users' ids and rows go with it.

    Yields:
        The directory, and a note on the figures; empty if the evaluation is of this very model.

    Raises:
        UserError: there is no such model, or it was not trained.
    """
    source = method_directory(name)
    card = read_card(source)
    if "training" not in card:
        raise UserError("is no trained model", where=source, fix="name one that `prlhf train` made")
    found = evaluated(name, card)
    with TemporaryDirectory(prefix="prlhf-") as temporary:
        directory = Path(temporary) / name
        shutil.copytree(source, directory)
        if not user_ids:
            about = {key: card[key] for key in card.keys() - {"users", "user_model"}}
            save_user_model(with_users(load_user_model(source), []), directory, about)
        text = model_card(
            read_card(directory),
            figures=found.figures,
            results=found.results,
            note=found.note,
            repo=repo,
        )
        write_text(directory / MODEL_CARD, text)
        yield directory, found.note


def send(directory: Path, repo: str, *, public: bool, revision: str | None) -> str:
    """Make the repository if there is none, and its content that of the directory.

    Args:
        directory: what `parcel` made.
        repo: org/name.
        public: whether everybody may see it.
        revision: the branch to send it to, made if there is none; None for the main one.

    Returns:
        The address of the commit.

    Raises:
        UserError: the name is none, nobody is logged in, the hub cannot be reached or refuses, or
            the repository is public and must not be.
    """
    require_repo(repo)
    api = HfApi()
    try:
        api.whoami()
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            problem, fix = "is a public repository", "use another one, or --public"
            raise UserError(problem, where=repo, fix=fix)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            revision=revision,
            commit_message=f"{directory.name}, trained by prlhf",
            # What an earlier push left must not outlive it.
            delete_patterns="*",
        )
    except LocalTokenNotFoundError as error:
        fix = "run `hf auth login`, or set HF_TOKEN"
        raise UserError("nobody is logged in to the hub", where="prlhf push", fix=fix) from error
    except OfflineModeIsEnabled as error:
        problem = "the hub is not to be asked: HF_HUB_OFFLINE is set"
        raise UserError(problem, where="prlhf push", fix="unset it, or use --dry-run") from error
    except HfHubHTTPError as error:
        answer = (error.server_message or str(error)).strip().splitlines()[0]
        fix = "check the name, and what the token (HF_TOKEN) may do"
        raise UserError(f"the hub refuses: {answer}", where=repo, fix=fix) from error
    except (HTTPError, ConnectionError) as error:
        fix = "check the network, then push again"
        raise UserError("the hub cannot be reached", where="prlhf push", fix=fix) from error
    return str(commit.commit_url)


def require_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UserError: it cannot.
    """
    try:
        validate_repo_id(repo)
        good = repo.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        problem = f"{repo!r} is no name of a repository"
        raise UserError(problem, where="prlhf push --repo", fix="use org/name")


# -- figures -------------------------------------------------------------------------------------


def evaluated(name: str, card: Mapping[str, Any]) -> Evaluated:
    """The figures of the last evaluation, if it is one of the model as it is.

    Args:
        name: of the model.
        card: what its directory says of it.
    """
    if reason := out_of_date(name):
        return Evaluated([], [], f"No figures on test data: {reason}.")
    metrics = read_json(METRICS)
    if "reward_model" in card:
        at = ("reward_models", card["reward_model"])
        accuracy = figure(metrics, *at, "macro")
        headline = {} if accuracy is None else {"accuracy": accuracy}
    else:
        at = ("accuracy", name)
        headline = look_up(read_json(HEADLINE), name) or {}
    ends = interval(metrics, *at, "macro")
    figures = []
    for key, value in headline.items():
        if key in SHARES:
            inside = f" (interval {percent_range(ends)})" if key == "accuracy" and ends else ""
            figures.append((SHARES[key], percent(value) + inside))
        else:
            figures.append((NUMBERS.get(key, key.replace("_", " ")), number(value)))
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Prediction of users' choices",
            dataset_type="preferences",
            dataset_name=card["data"]["name"],
            dataset_split="test",
            metric_type="accuracy",
            metric_name=SHARES["accuracy"],
            metric_value=headline["accuracy"],
        )
        for _ in range("accuracy" in headline)
    ]
    return Evaluated(figures, results)


def out_of_date(name: str) -> str | None:
    """Why reports/metrics.json is not of the model as it is; None if it is.

    The stages from the model to the figures have recorded in dvc.lock the hashes of what they read
    and wrote; all of that must be there, unchanged.
    """
    method = name.removeprefix("reward_")
    wanted = {f"generate@{name}", f"score@{name}", "judge", "evaluate"}
    if name != method:
        wanted |= {f"score_rewards@{method}"}
    try:
        with pipeline.open_project() as project:
            stages = [stage for stage in project.index.stages if stage.name in wanted]
            if not any("@" in str(stage.name) for stage in stages):
                return "the model was not among those evaluated"
            changed = _changed(project, [item for one in stages for item in [*one.deps, *one.outs]])
    except UserError:
        return "the model was not evaluated by the pipeline"
    return f"since the last evaluation {changed} has changed" if changed else None


def _changed(project: Repo, items: list[Output]) -> str | None:
    """The first of these files and directories that is not as dvc.lock has it, code left out."""
    for item in items:
        path = pipeline.in_project(project, item)
        if isinstance(item, ParamsDependency) or path.startswith("src/"):
            continue
        if not item.exists or not item.hash_info or item.changed_checksum():
            return path
    return None
