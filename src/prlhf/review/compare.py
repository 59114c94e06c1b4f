"""What a change does to the pipeline: parameters, the stages they make stale, and figures.

Two revisions are compared as they are, whether they were run or not. What dvc.lock and the typed
parameters make of the newer one are warnings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prlhf.errors import UserError, UserErrors
from prlhf.params.loading import PARAMS_FILE, parse
from prlhf.review import lock
from prlhf.review.changes import (
    SIDES,
    Changes,
    File,
    Metric,
    Parameter,
    Reason,
    Revision,
    StaleStage,
    Warned,
    rank,
)
from prlhf.review.pipeline import (
    WORKSPACE,
    Snapshot,
    StageState,
    Value,
    at,
    differs,
    open_project,
    require_git,
    resolve,
    snapshot,
)

if TYPE_CHECKING:
    from dvc.repo import Repo

COMMAND = "prlhf params diff"


def compare(old: str = "HEAD", new: str = WORKSPACE, path: Path = Path()) -> Changes:
    """Compare two revisions of the project that `path` is in.

    Args:
        old: A Git revision.
        new: Another one, or `workspace`.
        path: A directory of the project.

    Raises:
        UserError: There is no project, no Git or no such revision, or a side cannot be read.
    """
    with open_project(path) as project:
        require_git(project, COMMAND)
        commits = [resolve(project, name, COMMAND) for name in (old, new)]
        with at(project, commits[0], old):
            before = snapshot(project)
            stale = {"old": lock.find(project)}
        if not before.stages:
            raise UserError("has no stages in a dvc.yaml", where=old)
        with at(project, commits[1], new):
            faults = _faults(project, new)
            after = snapshot(project)
            stale["new"] = lock.find(project)
    sides = [
        Revision(name, None if commit == WORKSPACE else commit)
        for name, commit in zip((old, new), commits, strict=True)
    ]
    parameters = tuple(_parameters(before, after))
    reasons = _reasons(before, after, parameters)
    unrecorded = _unrecorded(before, stale["old"])
    stages = tuple(_stages(before, after, reasons, unrecorded))
    return Changes(
        old=sides[0],
        new=sides[1],
        parameters=parameters,
        stages=stages,
        of=len(after.stages),
        removed=tuple(name for name in before.stages if name not in after.stages),
        files=tuple(_files(before, after)),
        metrics=tuple(_metrics(before, after)),
        warnings=tuple(_warnings(stages, after, stale, faults)),
    )


def _parameters(before: Snapshot, after: Snapshot) -> Iterator[Parameter]:
    for file in dict.fromkeys([*after.params, *before.params]):
        old, new = before.params.get(file, {}), after.params.get(file, {})
        for key in dict.fromkeys([*new, *old]):
            if differs(old, new, key):
                sides = zip(SIDES, (old, new), strict=True)
                values = {side: tree[key] for side, tree in sides if key in tree}
                stages = (
                    name for name, stage in after.stages.items() if _declares(stage, file, key)
                )
                yield Parameter(file, key, values, tuple(stages))


def _declares(stage: StageState, file: str, key: str) -> bool:
    if file not in stage.params:
        return False
    declared = stage.params[file]
    # An emptied section is a key itself, above those that were declared.
    return not declared or any(_covers(one, key) or _covers(key, one) for one in declared)


def _covers(section: str, key: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _reasons(
    before: Snapshot, after: Snapshot, parameters: Iterable[Parameter]
) -> dict[str, tuple[Reason, ...]]:
    """Stage -> what makes it stale by itself, for those that are."""
    found: dict[str, tuple[Reason, ...]] = {}
    for name, stage in after.stages.items():
        former = before.stages.get(name)
        if stage.frozen:
            continue
        if former is None:
            found[name] = (Reason("new stage"),)
            continue
        reasons = [Reason("command")] if stage.command != former.command else []
        reasons += [Reason("{}", each.key) for each in parameters if name in each.stages]
        named = {(each.file, each.key) for each in parameters}
        reasons += [
            Reason("reads {} now", key)
            for file, keys in stage.params.items()
            for key in keys
            if key not in former.params.get(file, ())
            and not any(file == its and _covers(key, changed) for its, changed in named)
        ]
        reasons += [Reason("{}", path) for path in _stale_files(former, stage)]
        reasons += [Reason("writes {} now", path) for path in sorted(stage.outs - former.outs)]
        if reasons:
            found[name] = tuple(dict.fromkeys(reasons))
    return found


def _stale_files(former: StageState, stage: StageState) -> Iterator[str]:
    for path, digest in stage.files.items():
        if path not in former.files or former.files[path] != digest:
            yield path


def _stages(
    before: Snapshot,
    after: Snapshot,
    reasons: Mapping[str, tuple[Reason, ...]],
    unrecorded: set[str],
) -> Iterator[StaleStage]:
    for name in after.downstream(set(reasons)):
        cached = name in before.stages and name not in unrecorded
        own = reasons.get(name, ())
        above = () if own else tuple(each for each in reasons if name in after.followers[each])
        yield StaleStage(name, after.stages[name].gpu, cached, own, above)


def _files(before: Snapshot, after: Snapshot) -> Iterator[File]:
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
        if new[path] is None:
            change = "gone"
        elif old.get(path) is None:
            change = "new"
        else:
            change = "changed" if old[path] != new[path] else "newly read"
        yield File(path, "code" if path.startswith("src/") else "data", change, stages)


def _metrics(before: Snapshot, after: Snapshot) -> list[Metric]:
    found = [
        Metric(file, key, before.metrics[file][key], value, _interval(figures, key))
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
    """What the typed parameters say of params.yaml.

    Raises:
        UserError: It is no YAML, so that DVC cannot read it either.
    """
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


def _unrecorded(pipeline: Snapshot, stale: Iterable[lock.Stale]) -> set[str]:
    """The stages without a valid run in dvc.lock: those that are stale, and what follows."""
    return set(pipeline.downstream({one.stage for one in stale} & set(pipeline.stages)))
