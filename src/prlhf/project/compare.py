"""What a change does to the pipeline: parameters, the stages they make stale, and figures.

Two revisions are compared as they are, whether they were run or not. Faults that dvc.lock and the
typed parameters show at the newer one are warnings.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dvc.repo import Repo

from prlhf.infra.errors import UserError, UserErrors
from prlhf.params.loading import PARAMS_FILE, parse
from prlhf.project import lock, pipeline
from prlhf.project.pipeline import WORKSPACE, Content, Snapshot, StageState, Value

COMMAND = "prlhf params diff"

HEADLINE = (
    "accuracy.*.macro",
    "accuracy.*.worst_tenth",
    "accuracy.*.worst_user",
    "accuracy.*.generic",
    "accuracy.*.unseen",
    "accuracy_gain.*",
    "worst_tenth_gain.*",
    "win_rate.*.win_rate",
    "length.*.groups.*",
    "fluency.*.mean_nll",
    "fluency.*.degenerate",
    "fluency.*.empty",
    "fluency.*.unfinished",
)
"""The figures that a reader of a change wants first, in this order; `*` is one step of a key."""

_HEADLINE = [re.compile(re.escape(key).replace(r"\*", "[^.]*")) for key in HEADLINE]


class ChangedParameter(NamedTuple):
    """A parameter that differs; a side on which it does not exist has no entry in `values`."""

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


class StaleStage(NamedTuple):
    """A stage that the change makes stale.

    It has `reasons` of its own, or only `follows` other stages. `cached` says that dvc.lock of the
    older revision records its run.
    """

    name: str
    gpu: bool
    cached: bool
    reasons: tuple[Reason, ...]
    follows: tuple[str, ...]


class ChangedFile(NamedTuple):
    """A file or directory that no stage makes and that differs, with the stages it makes stale.

    Its `kind` is `code`, or `data` for all else; its `change` is `changed`, `new`, `gone`, or
    `newly read` by some stage. `files` are those that differ in a changed directory.
    """

    path: str
    kind: str
    change: str
    stages: tuple[str, ...]
    files: tuple[str, ...] = ()


class ChangedMetric(NamedTuple):
    """A figure that differs and is known on both sides, with the interval of the new one."""

    file: str
    key: str
    old: Value
    new: Value
    interval: tuple[Value, Value] | None


class Warned(NamedTuple):
    """Something that a reviewer should not miss: of kind `gpu`, `lock` or `params`.

    `about` is what is wrong -> the stages concerned; none for faults of params.yaml.
    """

    kind: str
    text: str
    about: Mapping[str, tuple[str, ...]]


class Revision(NamedTuple):
    """A side of the comparison: its name as given, and the commit; none for the workspace."""

    name: str
    commit: str | None


@dataclass(frozen=True)
class Changes:
    """All that differs between two revisions; `of` is the number of stages of the newer one."""

    old: Revision
    new: Revision
    parameters: tuple[ChangedParameter, ...]
    stages: tuple[StaleStage, ...]
    of: int
    removed: tuple[str, ...]
    files: tuple[ChangedFile, ...]
    metrics: tuple[ChangedMetric, ...]
    warnings: tuple[Warned, ...]


def compare(old: str = "HEAD", new: str = WORKSPACE, path: Path = Path()) -> Changes:
    """Compare a Git revision with another one, or `workspace`, of the project that `path` is in.

    Raises:
        UserError: There is no project, no Git or no such revision, or a side cannot be read.
    """
    with pipeline.open_project(path) as project:
        pipeline.require_git(project, COMMAND)
        commits = [pipeline.resolve_revision(project, name, COMMAND) for name in (old, new)]
        with pipeline.at_revision(project, commits[0], old):
            before = pipeline.snapshot(project)
            stale = {"old": lock.find(project)}
        if not before.stages:
            raise UserError("has no stages in a dvc.yaml", where=old)
        with pipeline.at_revision(project, commits[1], new):
            faults = _faults(project, new)
            after = pipeline.snapshot(project)
            stale["new"] = lock.find(project)
    commit_of = [None if commit == WORKSPACE else commit for commit in commits]
    parameters = tuple(_parameters(before, after))
    stages = tuple(_stages(before, after, parameters, _unrecorded(before, stale["old"])))
    return Changes(
        old=Revision(old, commit_of[0]),
        new=Revision(new, commit_of[1]),
        parameters=parameters,
        stages=stages,
        of=len(after.stages),
        removed=tuple(name for name in before.stages if name not in after.stages),
        files=tuple(_files(before, after)),
        metrics=tuple(_metrics(before, after)),
        warnings=tuple(_warnings(stages, after, stale, faults)),
    )


def rank(key: str) -> int:
    """The place of a figure's key in `HEADLINE`; behind all of them for other figures."""
    places = (n for n, pattern in enumerate(_HEADLINE) if pattern.fullmatch(key))
    return next(places, len(HEADLINE))


def as_json(changes: Changes) -> dict[str, Any]:
    """The whole of it for programs; see docs/reviewing-changes.md."""
    return {
        "old": changes.old._asdict(),
        "new": changes.new._asdict(),
        "parameters": [
            {"file": each.file, "key": each.key, **each.values, "stages": each.stages}
            for each in changes.parameters
        ],
        "stages": [
            {
                "name": each.name,
                "direct": bool(each.reasons),
                "reasons": [str(reason) for reason in each.reasons],
                "follows": each.follows,
                "gpu": each.gpu,
            }
            for each in changes.stages
        ],
        "removed_stages": changes.removed,
        "files": [
            {key: value for key, value in each._asdict().items() if key != "files" or value}
            for each in changes.files
        ],
        "metrics": [each._asdict() for each in changes.metrics],
        "warnings": [
            {
                "kind": each.kind,
                "text": each.text,
                "about": [{"what": what, "stages": names} for what, names in each.about.items()],
            }
            for each in changes.warnings
        ],
    }


def _parameters(before: Snapshot, after: Snapshot) -> Iterator[ChangedParameter]:
    for file in dict.fromkeys([*after.params, *before.params]):
        sides = {"old": before.params.get(file, {}), "new": after.params.get(file, {})}
        for key in pipeline.differing(*sides.values()):
            values = {side: tree[key] for side, tree in sides.items() if key in tree}
            stages = (name for name, stage in after.stages.items() if _declares(stage, file, key))
            yield ChangedParameter(file, key, values, tuple(stages))


def _declares(stage: StageState, file: str, key: str) -> bool:
    declared = stage.params.get(file)
    if not declared:
        return declared is not None
    # An emptied section is a key itself, above those that were declared.
    return any(_covers(one, key) or _covers(key, one) for one in declared)


def _covers(section: str, key: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _reasons(
    former: StageState | None, name: str, stage: StageState, parameters: Iterable[ChangedParameter]
) -> tuple[Reason, ...]:
    """What makes a stage stale by itself."""
    if former is None:
        return (Reason("new stage"),)
    reasons = [Reason("command")] if stage.command != former.command else []
    reasons += [Reason("{}", each.key) for each in parameters if name in each.stages]
    reasons += [
        Reason("reads {} now", key)
        for file, keys in stage.params.items()
        for key in keys
        if key not in former.params.get(file, ())
        and not any(file == each.file and _covers(key, each.key) for each in parameters)
    ]
    reasons += [Reason("{}", path) for path in _stale_files(former, stage)]
    reasons += [Reason("writes {} now", path) for path in sorted(stage.outs - former.outs)]
    return tuple(dict.fromkeys(reasons))


def _stale_files(former: StageState, stage: StageState) -> list[str]:
    return [
        path
        for path, content in stage.files.items()
        if path not in former.files or former.files[path].digest != content.digest
    ]


def _stages(
    before: Snapshot, after: Snapshot, parameters: Iterable[ChangedParameter], unrecorded: set[str]
) -> Iterator[StaleStage]:
    reasons = {
        name: () if stage.frozen else _reasons(before.stages.get(name), name, stage, parameters)
        for name, stage in after.stages.items()
    }
    direct = [name for name, found in reasons.items() if found]
    for name in after.downstream(set(direct)):
        cached = name in before.stages and name not in unrecorded
        own = reasons[name]
        above = () if own else tuple(each for each in direct if name in after.followers[each])
        yield StaleStage(name, after.stages[name].gpu, cached, own, above)


def _files(before: Snapshot, after: Snapshot) -> Iterator[ChangedFile]:
    params = {file for stage in after.stages.values() for file in stage.params}
    old = {path: it for stage in before.stages.values() for path, it in stage.files.items()}
    new = {path: it for stage in after.stages.values() for path, it in stage.files.items()}
    for path in sorted(set(new) - params):
        stages = tuple(
            name
            for name, stage in after.stages.items()
            if name in before.stages and path in _stale_files(before.stages[name], stage)
        )
        if not stages:
            continue
        then, now = old.get(path, Content(None, {})), new[path]
        if now.digest is None:
            change = "gone"
        elif then.digest is None:
            change = "new"
        else:
            change = "changed" if then.digest != now.digest else "newly read"
        parts = sorted(pipeline.differing(then.files, now.files)) if change == "changed" else []
        kind = "code" if f"{path}/".startswith("src/") else "data"
        yield ChangedFile(path, kind, change, stages, tuple(f"{path}/{part}" for part in parts))


def _metrics(before: Snapshot, after: Snapshot) -> list[ChangedMetric]:
    found = [
        ChangedMetric(file, key, before.metrics[file][key], value, _interval(figures, key))
        for file, figures in after.metrics.items()
        if file in before.metrics
        for key, value in figures.items()
        if key in before.metrics[file] and before.metrics[file][key] != value
    ]
    return sorted(found, key=lambda metric: rank(metric.key))


def _interval(figures: Mapping[str, Value], key: str) -> tuple[Value, Value] | None:
    low, high = (figures.get(f"interval.{key}.{end}") for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _faults(project: Repo, revision: str) -> list[str]:
    """What the typed parameters say of params.yaml; an error if it is no YAML."""
    path = project.fs.join(project.root_dir, str(PARAMS_FILE))
    if not project.fs.exists(path):
        return []
    try:
        parse(project.fs.read_text(path, encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=f"{revision}: {PARAMS_FILE}") from None
    except UserErrors as errors:
        return errors.lines()
    except UserError as error:
        raise UserError(error.problem, where=f"{revision}: {error.where}", fix=error.fix) from None
    return []


def _warnings(
    stages: Iterable[StaleStage],
    after: Snapshot,
    stale: Mapping[str, list[lock.Stale]],
    faults: list[str],
) -> Iterator[Warned]:
    if faults:
        text = f"{PARAMS_FILE} has faults: no stage would start."
        yield Warned("params", text, dict.fromkeys(faults, ()))
    unrecorded = _unrecorded(after, stale["new"])
    lost = [stage for stage in stages if stage.gpu and stage.cached]
    for again, text in (
        (True, "Cached results of GPU stages are no longer valid: these stages have to run again."),
        (False, "Cached results of GPU stages are no longer valid; dvc.lock has their new runs."),
    ):
        names = [stage for stage in lost if (stage.name in unrecorded) is again]
        if names:
            about = {
                "stale by this change": tuple(stage.name for stage in names if stage.reasons),
                "follow": tuple(stage.name for stage in names if not stage.reasons),
            }
            yield Warned("gpu", text, {why: found for why, found in about.items() if found})
    if stale["new"]:
        text = (
            "dvc.lock does not record the pipeline as it is; figures are those of an earlier one. "
            "Run `dvc repro`, then commit dvc.lock and reports/."
        )
        if all(one in stale["old"] for one in stale["new"]):
            text += " It was so before this change."
        reasons: dict[str, tuple[str, ...]] = {}
        for one in stale["new"]:
            reasons[one.why] = (*reasons.get(one.why, ()), one.stage)
        yield Warned("lock", text, reasons)


def _unrecorded(side: Snapshot, stale: Iterable[lock.Stale]) -> set[str]:
    """The stages without a valid run in dvc.lock: those that are stale, and what follows."""
    return set(side.downstream({one.stage for one in stale} & set(side.stages)))
