"""Experiments by name: overlays on params.yaml that hold only what differs from it.

An overlay is `experiments/<name>.yaml`, with the structure of params.yaml and a comment at its top
that says what it is. Two keys are its own: `extends` names an overlay to build on, and `grid` lists
values to try for keys (`grid: {train.alpha: [0.25, 0.5]}`), every combination of which is a run.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prlhf.errors import UserError, UserErrors
from prlhf.params.loading import PARAMS_FILE, plain, read_yaml
from prlhf.params.overrides import overridden

ROOT = Path("experiments")
EXTENDS = "extends"
GRID = "grid"


@dataclass(frozen=True)
class Experiment:
    """An overlay, with what it builds on.

    Attributes:
        name: The file's name without its suffix.
        about: The comment at its top, in one line.
        changes: Dotted key -> value.
        grid: Dotted key -> the values to try.
        places: Dotted key -> the file and line that it comes from.
    """

    name: str
    about: str
    changes: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def runs(self) -> Iterator[dict[str, Any]]:
        """The changes of each run: one, or every combination of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield self.changes | dict(zip(self.grid, values, strict=True))


def overrides(name: str, root: Path = ROOT) -> dict[str, Any]:
    """What an experiment changes in params.yaml: dotted key -> value.

    Args:
        name: Of the experiment.
        root: The directory of overlays.

    Raises:
        UserError: There is no such experiment, its file has faults, or it is a grid of runs.
    """
    experiment = read(name, root)
    if experiment.grid:
        raise UserError(
            f"is a grid of {len(list(experiment.runs()))} runs",
            where=_path(name, root),
            fix=f"queue them: dvc exp run $(prlhf experiment flags {name})",
        )
    return experiment.changes


def names(root: Path = ROOT) -> list[str]:
    """The experiments there are."""
    return sorted(path.stem for path in root.glob("*.yaml"))


def read(name: str, root: Path = ROOT, asked_by: str | None = None) -> Experiment:
    """Read an overlay and those that it builds on; values are not checked.

    Args:
        name: Of the experiment.
        root: The directory of overlays.
        asked_by: What messages call the place that names it.

    Raises:
        UserError: There is no such experiment, or its file has faults.
    """
    return _read(name, root, (), asked_by or f"experiment {name}")


def check(experiment: Experiment, params: Path = PARAMS_FILE) -> None:
    """Check that params.yaml with the changes of an experiment is good, for each of its runs.

    Raises:
        UserErrors: Keys are unknown or values are not allowed; every fault with its line.
    """
    faults: dict[str, UserError] = {}
    for changes in experiment.runs():
        try:
            overridden(params, changes)
        except UserErrors as found:
            for error in found.errors:
                place = _place(experiment, error.where or "")
                where = f"{place}: {error.where}" if place else error.where
                one = UserError(error.problem, where=where, fix=error.fix)
                faults.setdefault(str(one), one)
    if faults:
        raise UserErrors(list(faults.values()))


def flags(experiment: Experiment, params: Path = PARAMS_FILE) -> list[str]:
    """The arguments of `dvc exp run` that stand for an experiment.

    They hold no white space, so that a shell takes `$(prlhf experiment flags NAME)` apart between
    them and nowhere else. Keys that params.yaml lacks (a new method) carry Hydra's `+`. A grid is
    queued: DVC makes a run of each combination.

    Raises:
        UserError: A value has white space in it.
        UserErrors: As `check`.
    """
    check(experiment, params)
    document = read_yaml(params)
    found = ["--queue"] if experiment.grid else []
    swept = {key: ",".join(map(hydra, values)) for key, values in experiment.grid.items()}
    fixed = {k: hydra(value) for k, value in experiment.changes.items() if k not in swept}
    for key, value in (fixed | swept).items():
        if re.search(r"\s|\$\{", value):
            raise UserError(
                "holds white space, at which a shell takes the flags apart, or ${",
                where=f"{experiment.places[key]}: {key}",
                fix="set it in params.yaml instead",
            )
        found += ["-S", f"{'' if current(document, key)[0] else '+'}{key}={value}"]
    return found


def current(document: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Whether a parameter file has a dotted key, and its value there."""
    node: Any = document
    for step in key.split("."):
        if not isinstance(node, Mapping) or step not in node:
            return False, None
        node = node[step]
    return True, plain(node)


def hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, which `dvc exp run -S` takes.

    Text is quoted where Hydra would read something else: a number, null, a list.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(hydra, value))}]"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    # Hydra undoes backslashes before a quote only, and those at the end.
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", text)
    quoted = re.sub(r"(\\+)$", r"\1\1", quoted)
    return f"'{quoted}'"


_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_WORDS = {"null", "true", "false", "nan", "inf"}


def _read(name: str, root: Path, children: tuple[str, ...], asked_by: str) -> Experiment:
    path = _path(name, root)
    if name not in names(root):
        close = difflib.get_close_matches(name, names(root), n=1)
        fix = f"did you mean {close[0]}?" if close else "see `prlhf experiment list`"
        raise UserError(f"there is no {path}", where=asked_by, fix=fix)
    if name in children:
        circle = " -> ".join([*children[children.index(name) :], name])
        raise UserError(f"builds on itself: {circle}", where=asked_by)
    document = read_yaml(path)
    own = {key: value for key, value in document.items() if key not in (EXTENDS, GRID)}
    line = {key: document.lc.key(key)[0] + 1 for key in document}
    changes, places = {}, {}
    for key, value, number in leaves(own, document):
        changes[key], places[key] = value, f"{path}:{number}"
    grid = {}
    for key, values, number in leaves({GRID: document.get(GRID, {})}, document):
        if key == GRID and not values:
            continue
        if not (isinstance(values, list) and values):
            raise UserError("must list values to try", where=f"{path}:{number}: {key}")
        swept = key.removeprefix(f"{GRID}.")
        grid[swept], places[swept] = values, f"{path}:{number}"
    parent = document.get(EXTENDS)
    base = Experiment("", "")
    if parent is not None:
        where = f"{path}:{line[EXTENDS]}: {EXTENDS}"
        base = _read(str(parent), root, (*children, name), where)
    return Experiment(
        name,
        about(path),
        base.changes | changes,
        {key: values for key, values in base.grid.items() if key not in changes} | grid,
        base.places | places,
    )


def _path(name: str, root: Path) -> Path:
    return root / f"{name}.yaml"


def leaves(node: Any, document: Any, prefix: str = "") -> Iterator[tuple[str, Any, int]]:
    """Dotted key, value and line of everything in an overlay that is no section.

    Args:
        node: The mapping to go through.
        document: The same with ruamel's lines; keys that it lacks get line 0.
        prefix: Of the dotted keys.
    """
    for name, value in node.items():
        key = f"{prefix}{name}"
        line = document.lc.key(name)[0] + 1 if name in document else 0
        if isinstance(value, dict) and value:
            yield from leaves(value, value, f"{key}.")
        else:
            yield key, plain(value), line


def _place(experiment: Experiment, key: str) -> str:
    """The place of a key, or of one in the section of that name."""
    places = experiment.places
    return places.get(key) or next((places[k] for k in places if k.startswith(f"{key}.")), "")


def about(path: Path) -> str:
    """The comment at the top of a file, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment).strip()
