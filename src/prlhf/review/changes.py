"""What differs between two revisions of the pipeline, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prlhf.review.pipeline import Value

SIDES = ("old", "new")
"""The revisions that are compared."""

HEADLINE = (
    "accuracy.*.macro",
    "accuracy.*.worst_user",
    "accuracy.*.generic",
    "accuracy.*.unseen",
    "accuracy_gain.*",
    "win_rate.*.win_rate",
    "length.*.groups.*",
    "fluency.*.mean_nll",
    "fluency.*.degenerate",
    "fluency.*.empty",
)
"""The figures that a reader of a change wants first, in this order; `*` is one step of a key."""


@dataclass(frozen=True)
class Parameter:
    """A parameter that differs. A side where the key does not exist has no entry in `values`.

    Attributes:
        file: Its file.
        key: Its dotted key.
        values: `old` and `new`.
        stages: The stages that declare it.
    """

    file: str
    key: str
    values: Mapping[str, Value]
    stages: tuple[str, ...]


class Reason(NamedTuple):
    """What makes a stage stale: a phrase with `{}` for the name of a key or file."""

    phrase: str
    name: str = ""

    def __str__(self) -> str:
        return self.phrase.format(self.name)


@dataclass(frozen=True)
class StaleStage:
    """A stage that the change makes stale.

    Attributes:
        name: Its name.
        gpu: Whether it is marked as one for a GPU.
        cached: Whether dvc.lock of the older revision records its run.
        reasons: What it reads that has changed; nothing if it only follows.
        follows: The stages that it follows, if it has no reason of its own.
    """

    name: str
    gpu: bool
    cached: bool
    reasons: tuple[Reason, ...]
    follows: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """Code or data that differs: a dependency that no stage makes.

    Attributes:
        path: The path.
        kind: `code`, or `data` for all else.
        change: `changed`, `new`, `gone`, or `newly read` by some stage.
        stages: The stages that it makes stale.
    """

    path: str
    kind: str
    change: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """A figure that differs and is known on both sides.

    Attributes:
        file: Its file.
        key: Its dotted key.
        old: The figure before.
        new: The figure after.
        interval: The ends of the interval of `new`, if the file has them.
    """

    file: str
    key: str
    old: Value
    new: Value
    interval: tuple[Value, Value] | None

    @property
    def headline(self) -> bool:
        return rank(self.key) < len(HEADLINE)


@dataclass(frozen=True)
class Warned:
    """Something that a reviewer should not miss.

    Attributes:
        kind: `gpu`, `lock` or `params`.
        text: What it is.
        about: What is wrong -> the stages that it is about; for faults of params.yaml none.
    """

    kind: str
    text: str
    about: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Revision:
    """A side of the comparison: its name as given, and the commit; none for the workspace."""

    name: str
    commit: str | None


@dataclass(frozen=True)
class Changes:
    """All that differs between two revisions; see the classes of the parts."""

    old: Revision
    new: Revision
    parameters: tuple[Parameter, ...]
    stages: tuple[StaleStage, ...]
    of: int
    removed: tuple[str, ...]
    files: tuple[File, ...]
    metrics: tuple[Metric, ...]
    warnings: tuple[Warned, ...]


def rank(key: str) -> int:
    """The place of a figure's key in `HEADLINE`; behind all of them for other figures."""
    steps = key.split(".")
    for place, pattern in enumerate(HEADLINE):
        wanted = pattern.split(".")
        if len(wanted) == len(steps) and all(
            step in ("*", own) for step, own in zip(wanted, steps, strict=True)
        ):
            return place
    return len(HEADLINE)


def as_json(changes: Changes) -> dict[str, Any]:
    """The whole of it for programs; see docs/reviewing-changes.md."""
    return {
        "old": vars(changes.old),
        "new": vars(changes.new),
        "parameters": [
            {"file": each.file, "key": each.key, **each.values, "stages": list(each.stages)}
            for each in changes.parameters
        ],
        "stages": [
            {
                "name": each.name,
                "direct": bool(each.reasons),
                "reasons": [str(reason) for reason in each.reasons],
                "follows": list(each.follows),
                "gpu": each.gpu,
            }
            for each in changes.stages
        ],
        "removed_stages": list(changes.removed),
        "files": [
            {
                "path": each.path,
                "kind": each.kind,
                "change": each.change,
                "stages": list(each.stages),
            }
            for each in changes.files
        ],
        "metrics": [
            {
                "file": each.file,
                "key": each.key,
                "old": each.old,
                "new": each.new,
                "interval": each.interval and list(each.interval),
            }
            for each in changes.metrics
        ],
        "warnings": [
            {
                "kind": each.kind,
                "text": each.text,
                "about": [
                    {"what": what, "stages": list(names)} for what, names in each.about.items()
                ],
            }
            for each in changes.warnings
        ],
    }
