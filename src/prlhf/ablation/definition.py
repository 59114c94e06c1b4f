"""What an ablation compares: `experiments/ablations/<name>.yaml`.

A comment at the top says what it is. The keys are

    title: what is compared, for people
    extends: an overlay of experiments/ whose changes all runs share        (optional)
    base: more changes that all runs share, on top of it                    (optional)
    method: the method whose figures are compared, a key of `methods`
    seeds: each setting runs once with each
    baseline: the setting that the others are compared with                 (optional: the first)
    settings: name -> what it changes, as in an overlay; its order is that of the tables
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from prlhf import experiments
from prlhf.errors import UserError, UserErrors
from prlhf.experiments import Experiment
from prlhf.params import Params
from prlhf.params.loading import PARAMS_FILE, parse, plain, read_yaml
from prlhf.params.overrides import overridden

ROOT = Path("experiments/ablations")
KEYS = ("title", "extends", "base", "method", "seeds", "baseline", "settings")
REQUIRED = ("title", "method", "seeds", "settings")
SEED = "seed"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Setting:
    """One of the choices.

    Attributes:
        name: Its name.
        own: Dotted key -> value, of what it changes itself.
        changes: The same, with what all settings of the ablation share.
        places: Dotted key -> the file and line that it comes from.
    """

    name: str
    own: Mapping[str, Any]
    changes: Mapping[str, Any]
    places: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One setting with one seed.

    Attributes:
        experiment: The name of DVC's experiment.
        setting: The setting's name.
        seed: The seed.
        text: Its params.yaml.
        params: The same, typed.
    """

    experiment: str
    setting: str
    seed: int
    text: str
    params: Params


@dataclass(frozen=True)
class Ablation:
    """Settings to compare.

    Attributes:
        name: The file's name without its suffix.
        about: The comment at its top, in one line.
        title: What is compared.
        method: The method whose figures are compared.
        method_place: The file and line that name it.
        seeds: Each setting runs once with each.
        baseline: The setting that the others are compared with.
        settings: In the order of the tables.
        shared: Dotted key -> value, of what all runs change.
    """

    name: str
    about: str
    title: str
    method: str
    method_place: str
    seeds: Sequence[int]
    baseline: str
    settings: Sequence[Setting]
    shared: Mapping[str, Any]

    def with_seeds(self, seeds: Sequence[int]) -> Ablation:
        """The same with other seeds."""
        return replace(self, seeds=tuple(seeds))


def names(root: Path = ROOT) -> list[str]:
    """The ablations there are."""
    return sorted(path.stem for path in root.glob("*.yaml"))


def read(name: str, root: Path = ROOT) -> Ablation:
    """Read an ablation; the values of parameters are not checked yet.

    Args:
        name: Of the ablation.
        root: The directory of ablations; overlays are in the one above it.

    Raises:
        UserError: There is no such ablation, or its file has faults.
    """
    path = root / f"{name}.yaml"
    if name not in names(root):
        close = difflib.get_close_matches(name, names(root), n=1)
        fix = f"did you mean {close[0]}?" if close else "see `prlhf ablate --list`"
        raise UserError(f"there is no {path}", where=f"prlhf ablate {name}", fix=fix)
    document = read_yaml(path)
    _check_keys(document, path)
    shared, places = _shared(document, path, root.parent)
    settings = _settings(document, path, shared, places)
    baseline = str(document.get("baseline", settings[0].name))
    if baseline not in [setting.name for setting in settings]:
        raise UserError(
            "is no setting",
            where=f"{_at(document, path, 'baseline')}: baseline: {baseline}",
            fix=f"settings has {', '.join(setting.name for setting in settings)}",
        )
    return Ablation(
        name=name,
        about=experiments.about(path),
        title=str(document["title"]),
        method=str(document["method"]),
        method_place=_at(document, path, "method"),
        seeds=_seeds(document, path),
        baseline=baseline,
        settings=settings,
        shared=shared,
    )


def resolve(ablation: Ablation, params: Path = PARAMS_FILE) -> list[Run]:
    """The runs of an ablation, every one of them checked down to typed parameters.

    They come seed by seed: what stops half-way has whole rows to compare.

    Args:
        ablation: What to run.
        params: The parameters that its settings change.

    Raises:
        UserErrors: Keys are unknown, values are not allowed, or the method is not trained; every
            fault with its file and line.
    """
    faults: dict[str, UserError] = {}
    for number, setting in enumerate(ablation.settings):
        # All seeds once, not under every setting.
        seeds = list(ablation.seeds)[: None if number == 0 else 1]
        overlay = Experiment(
            setting.name, ablation.about, dict(setting.changes), {SEED: seeds}, dict(setting.places)
        )
        try:
            experiments.check(overlay, params)
        except UserErrors as found:
            faults |= {str(error): error for error in found.errors}
    if faults:
        raise UserErrors(list(faults.values()))
    runs: list[Run] = []
    known: dict[str, Params] = {}
    for seed, setting in itertools.product(ablation.seeds, ablation.settings):
        text = overridden(params, {**setting.changes, SEED: seed})
        if setting.name not in known:
            known[setting.name] = parse(text)
        typed = known[setting.name].model_copy(update={SEED: seed})
        if ablation.method not in typed.compare.trained:
            raise UserError(
                f"is not trained under {setting.name}",
                where=f"{ablation.method_place}: method: {ablation.method}",
                fix=f"compare.trained has {', '.join(typed.compare.trained)}",
            )
        experiment = f"ablate-{ablation.name}-{setting.name}-{seed}"
        runs.append(Run(experiment, setting.name, seed, text, typed))
    return runs


def _check_keys(document: CommentedMap, path: Path) -> None:
    faults = []
    for key in document:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            fix = f"did you mean {close[0]}?" if close else f"known here: {', '.join(KEYS)}"
            faults.append(
                UserError("unknown key", where=f"{_at(document, path, key)}: {key}", fix=fix)
            )
    faults += [
        UserError("missing key", where=f"{path}: {key}") for key in REQUIRED if key not in document
    ]
    for key in ("base", "settings"):
        if key in document and not (isinstance(document[key], CommentedMap) and document[key]):
            faults.append(
                UserError("must hold keys and values", where=f"{_at(document, path, key)}: {key}")
            )
    if faults:
        raise UserErrors(faults)


def _shared(
    document: CommentedMap, path: Path, overlays: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    changes: dict[str, Any] = {}
    places: dict[str, str] = {}
    if "extends" in document:
        where = f"{_at(document, path, 'extends')}: extends"
        parent = experiments.read(str(document["extends"]), overlays, where)
        if parent.grid:
            raise UserError(f"{parent.name} is a grid of runs", where=where)
        changes, places = dict(parent.changes), dict(parent.places)
    own, own_places = _overlay(document.get("base", {}), path)
    changes, places = changes | own, places | own_places
    # The grid's key, in the words of Experiment.
    places[SEED] = _at(document, path, "seeds")
    return changes, places


def _settings(
    document: CommentedMap, path: Path, shared: Mapping[str, Any], places: Mapping[str, str]
) -> list[Setting]:
    found = []
    settings = document["settings"]
    for key in settings:
        where = f"{_at(settings, path, key)}: settings.{key}"
        if isinstance(key, bool) or not _NAME.fullmatch(str(key)):
            fix = "put it in quotes; letters, digits, . - and _ will do"
            raise UserError("is no name for a setting", where=where, fix=fix)
        if not isinstance(settings[key], CommentedMap):
            raise UserError("must hold the keys that it changes", where=where, fix="{} for none")
        own, own_places = _overlay(settings[key], path)
        if SEED in own:
            raise UserError("is what seeds lists", where=f"{own_places[SEED]}: {SEED}")
        found.append(Setting(str(key), own, {**shared, **own}, {**places, **own_places}))
    if len(found) < 2:
        where = f"{_at(document, path, 'settings')}: settings"
        raise UserError("must hold two settings or more to compare", where=where)
    return found


def _seeds(document: CommentedMap, path: Path) -> tuple[int, ...]:
    seeds = plain(document["seeds"])
    good = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    if not good or len(set(seeds)) < len(seeds):
        where = f"{_at(document, path, 'seeds')}: seeds"
        raise UserError("must list whole numbers, each once", where=where, fix="as in [7, 8, 9]")
    return tuple(seeds)


def _overlay(node: Any, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    changes, places = {}, {}
    for key, value, line in experiments.leaves(node, node):
        changes[key], places[key] = value, f"{path}:{line}"
    return changes, places


def _at(document: CommentedMap, path: Path, key: Any) -> str:
    return f"{path}:{document.lc.key(key)[0] + 1}" if key in document else str(path)
