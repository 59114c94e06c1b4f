"""Experiments by name: overlays on params.yaml that hold only what differs from it.

An overlay is `experiments/<name>.yaml`, with the structure of params.yaml and a comment at its top
that says what it is. Two keys are its own: `extends` names an overlay to build on, and `grid` lists
values to try for keys (`grid: {train.alpha: [0.25, 0.5]}`), every combination of which is a run.
"""

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prlhf.infra.errors import UserError, UserErrors
from prlhf.params.loading import PARAMS_FILE, as_python, overridden, read_yaml

ROOT = Path("experiments")
EXTENDS = "extends"
GRID = "grid"
_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_WORDS = {"null", "true", "false", "nan", "inf"}


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
    """What an experiment in the directory `root` changes in params.yaml: dotted key -> value.

    Raises:
        UserError: There is no such experiment, its file has faults, or it is a grid of runs.
    """
    experiment = read(name, root)
    if experiment.grid:
        raise UserError(
            f"is a grid of {len(list(experiment.runs()))} runs",
            where=root / f"{name}.yaml",
            fix=f"queue them: dvc exp run $(prlhf experiment flags {name})",
        )
    return experiment.changes


def names(root: Path = ROOT) -> list[str]:
    """The experiments there are."""
    return sorted(path.stem for path in root.glob("*.yaml"))


def find(name: str, root: Path, where: str, listing: str) -> Path:
    """The file of an experiment or an ablation in the directory `root`.

    Raises:
        UserError: There is none; `where` is what names it, `listing` says how to list them.
    """
    known, path = names(root), root / f"{name}.yaml"
    if name not in known:
        raise UserError(f"there is no {path}", where=where, fix=nearest(name, known, listing))
    return path


def nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    """A hint at the known name that is most like another, or else at something else."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else otherwise


def read(
    name: str, root: Path = ROOT, asked_by: str | None = None, children: tuple[str, ...] = ()
) -> Experiment:
    """Read an overlay and those that it builds on; values are not checked.

    Args:
        name: Of the experiment.
        root: The directory of overlays.
        asked_by: What messages call the place that names it.
        children: The overlays on the way to it, each of which builds on the next.

    Raises:
        UserError: There is no such experiment, or its file has faults.
    """
    asked_by = asked_by or f"experiment {name}"
    path = find(name, root, asked_by, "see `prlhf experiment list`")
    if name in children:
        circle = " -> ".join([*children[children.index(name) :], name])
        raise UserError(f"builds on itself: {circle}", where=asked_by)
    document = read_yaml(path)
    changes, places = overlay(document, path, (EXTENDS, GRID))
    swept = document.get(GRID) or {}
    if not isinstance(swept, dict):
        where = f"{place_of(document, path, GRID)}: {GRID}"
        raise UserError("must list values to try", where=where)
    grid, grid_places = overlay(swept, path)
    for key, values in grid.items():
        if not (isinstance(values, list) and values):
            where = f"{grid_places[key]}: {GRID}.{key}"
            raise UserError("must list values to try", where=where)
    base = Experiment("", "")
    if document.get(EXTENDS) is not None:
        where = f"{place_of(document, path, EXTENDS)}: {EXTENDS}"
        base = read(str(document[EXTENDS]), root, where, (*children, name))
    return Experiment(
        name,
        about(path),
        base.changes | changes,
        {key: values for key, values in base.grid.items() if key not in changes} | grid,
        base.places | places | grid_places,
    )


def overlay(
    section: Mapping[Any, Any], path: Path, skip: Sequence[str] = (), prefix: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """Flatten a section as ruamel reads it: dotted key -> value, and dotted key -> file and line.

    Keys of the outermost section that are in `skip` are left out.
    """
    changes: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if name in skip:
            continue
        if isinstance(value, dict) and value:
            inner, inner_places = overlay(value, path, prefix=f"{key}.")
            changes, places = changes | inner, places | inner_places
        else:
            changes[key], places[key] = as_python(value), place_of(section, path, name)
    return changes, places


def place_of(section: Any, path: Path, key: Any) -> str:
    """The file and line of a key, or the file alone if the section lacks the key."""
    return f"{path}:{section.lc.key(key)[0] + 1}" if key in section else str(path)


def about(path: Path) -> str:
    """The comment at the top of a file, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment).strip()


def check(experiment: Experiment, params: Path = PARAMS_FILE) -> None:
    """Check params.yaml with the changes of an experiment, for each of its runs.

    Raises:
        UserErrors: Keys are unknown or values are not allowed; every fault with its line.
    """
    faults: dict[str, UserError] = {}
    for changes in experiment.runs():
        try:
            overridden(params, changes)
        except UserErrors as found:
            for error in found.errors:
                # The place of the key, or of the first one in the section of that name.
                key, places = error.where or "", experiment.places
                within = (places[name] for name in places if name.startswith(f"{key}."))
                place = places.get(key) or next(within, "")
                where = f"{place}: {key}" if place else error.where
                one = UserError(error.problem, where=where, fix=error.fix)
                faults.setdefault(str(one), one)
    if faults:
        raise UserErrors(list(faults.values()))


def flags(experiment: Experiment, params: Path = PARAMS_FILE) -> list[str]:
    """The arguments of `dvc exp run` that stand for an experiment.

    None holds white space, so that a shell splits `$(prlhf experiment flags NAME)` between them
    only. Keys that params.yaml lacks (a new method) carry Hydra's `+`. A grid is queued: DVC makes
    a run of each combination.

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
    return True, as_python(node)


def hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, which `dvc exp run -S` takes.

    Text is quoted where Hydra would read something else: a number, null, a list.
    """
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else repr(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(hydra, value))}]"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    # Hydra undoes backslashes before a quote only, and those at the end.
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", text)
    quoted = re.sub(r"(\\+)$", r"\1\1", quoted)
    return f"'{quoted}'"
