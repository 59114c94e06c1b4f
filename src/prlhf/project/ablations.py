"""What an ablation compares: `experiments/ablations/<name>.yaml`.

A comment at the top says what it is. The keys are

    title: what is compared, for people
    extends: an overlay of experiments/ whose changes all runs share        (optional)
    base: more changes that all runs share, on top of it                    (optional)
    method: the method whose figures are compared, a key of `methods`
    seeds: each setting runs once with each, and is chosen by what they say on validation pairs
    fresh: more seeds, used for nothing but the results on test pairs       (optional)
    baseline: the setting that the others are compared with                 (optional: the first)
    settings: name -> what it changes, as in an overlay; its order is that of the tables
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml.comments import CommentedMap

from prlhf.infra.errors import UserError, UserErrors
from prlhf.params import Params
from prlhf.params.loading import PARAMS_FILE, as_python, overridden, parse, read_yaml
from prlhf.project import experiments
from prlhf.project.experiments import Experiment, place_of

ROOT = Path("experiments/ablations")
KEYS = ("title", "extends", "base", "method", "seeds", "fresh", "baseline", "settings")
REQUIRED = ("title", "method", "seeds", "settings")
SEED = "seed"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


class Setting(NamedTuple):
    """One of the choices: what it changes itself, and together with what all settings share."""

    name: str
    own: Mapping[str, Any]
    changes: dict[str, Any]
    places: dict[str, str]


class AblationRun(NamedTuple):
    """One setting with one seed: the name of its experiment, its params.yaml, and that typed."""

    experiment: str
    setting: str
    seed: int
    text: str
    params: Params


@dataclass(frozen=True)
class Ablation:
    """Settings to compare; see the keys of the file above.

    Attributes:
        name: The file's name without its suffix.
        about: The comment at its top, in one line.
        method_place: The file and line that name the method.
        settings: In the order of the tables.
        shared: Dotted key -> value, of what all runs change.
    """

    name: str
    about: str
    title: str
    method: str
    method_place: str
    seeds: Sequence[int]
    fresh: Sequence[int]
    baseline: str
    settings: Sequence[Setting]
    shared: Mapping[str, Any]

    @property
    def reported(self) -> Sequence[int]:
        """The seeds whose results on test pairs are told: fresh ones if there are any."""
        return self.fresh or self.seeds


def names(root: Path = ROOT) -> list[str]:
    """The ablations there are."""
    return experiments.names(root)


def read(name: str, root: Path = ROOT, seeds: Sequence[int] | None = None) -> Ablation:
    """Read an ablation; the values of parameters are not checked yet.

    Args:
        name: Of the ablation.
        root: The directory of ablations; overlays are in the one above it.
        seeds: Used instead of those of the file, fresh ones included.

    Raises:
        UserError: There is no such ablation, or its file has faults.
    """
    path = experiments.find(name, root, f"prlhf ablate {name}", "see `prlhf ablate --list`")
    document = read_yaml(path)
    _check_keys(document, path)
    shared, places = _shared(document, path, root.parent)
    settings = _settings(document, path, shared, places)
    baseline = str(document.get("baseline", settings[0].name))
    if baseline not in [setting.name for setting in settings]:
        raise UserError(
            "is no setting",
            where=f"{place_of(document, path, 'baseline')}: baseline: {baseline}",
            fix=f"settings has {', '.join(setting.name for setting in settings)}",
        )
    return Ablation(
        name=name,
        about=experiments.about(path),
        title=str(document["title"]),
        method=str(document["method"]),
        method_place=place_of(document, path, "method"),
        seeds=tuple(seeds) if seeds else _seeds(document, path, "seeds"),
        fresh=_fresh(document, path) if "fresh" in document and not seeds else (),
        baseline=baseline,
        settings=settings,
        shared=shared,
    )


def resolve(ablation: Ablation, params: Path = PARAMS_FILE) -> list[AblationRun]:
    """The runs of an ablation, with what its settings make of `params`; all of them are checked.

    They come seed by seed, so that settings can be compared if only some of the runs are made.

    Raises:
        UserErrors: Keys are unknown, values are not allowed, or the method is not trained; every
            fault with its file and line.
    """
    faults: dict[str, UserError] = {}
    for number, setting in enumerate(ablation.settings):
        # All seeds once, not under every setting.
        grid = {SEED: [*ablation.seeds, *ablation.fresh][: None if number == 0 else 1]}
        try:
            experiments.check(Experiment("", "", setting.changes, grid, setting.places), params)
        except UserErrors as found:
            faults |= {str(error): error for error in found.errors}
    if faults:
        raise UserErrors(list(faults.values()))
    runs: list[AblationRun] = []
    known: dict[str, Params] = {}
    seeds = (*ablation.seeds, *ablation.fresh)
    for seed, setting in itertools.product(seeds, ablation.settings):
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
        runs.append(AblationRun(experiment, setting.name, seed, text, typed))
    return runs


def _check_keys(document: CommentedMap, path: Path) -> None:
    faults = []
    for key in document:
        if key not in KEYS:
            fix = experiments.nearest(str(key), KEYS, f"known here: {', '.join(KEYS)}")
            where = f"{place_of(document, path, key)}: {key}"
            faults.append(UserError("unknown key", where=where, fix=fix))
    faults += [
        UserError("missing key", where=f"{path}: {key}") for key in REQUIRED if key not in document
    ]
    for key in ("base", "settings"):
        if key in document and not (isinstance(document[key], CommentedMap) and document[key]):
            where = f"{place_of(document, path, key)}: {key}"
            faults.append(UserError("must hold keys and values", where=where))
    if faults:
        raise UserErrors(faults)


def _shared(
    document: CommentedMap, path: Path, overlays: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    parent = Experiment("", "")
    if "extends" in document:
        where = f"{place_of(document, path, 'extends')}: extends"
        parent = experiments.read(str(document["extends"]), overlays, where)
        if parent.grid:
            raise UserError(f"{parent.name} is a grid of runs", where=where)
    own, places = experiments.overlay(document.get("base", {}), path)
    # Seeds are the grid of an Experiment.
    seeds = {SEED: place_of(document, path, "seeds")}
    return parent.changes | own, parent.places | places | seeds


def _settings(
    document: CommentedMap, path: Path, shared: Mapping[str, Any], places: Mapping[str, str]
) -> list[Setting]:
    found = []
    settings = document["settings"]
    for key in settings:
        where = f"{place_of(settings, path, key)}: settings.{key}"
        if isinstance(key, bool) or not _NAME.fullmatch(str(key)):
            fix = "put it in quotes; letters, digits, . - and _ will do"
            raise UserError("is no name for a setting", where=where, fix=fix)
        if not isinstance(settings[key], CommentedMap):
            raise UserError("must hold the keys that it changes", where=where, fix="{} for none")
        own, own_places = experiments.overlay(settings[key], path)
        if SEED in own:
            raise UserError("is what seeds lists", where=f"{own_places[SEED]}: {SEED}")
        found.append(Setting(str(key), own, {**shared, **own}, {**places, **own_places}))
    if len(found) < 2:
        where = f"{place_of(document, path, 'settings')}: settings"
        raise UserError("must hold two settings or more to compare", where=where)
    return found


def _fresh(document: CommentedMap, path: Path) -> tuple[int, ...]:
    fresh = _seeds(document, path, "fresh")
    if not set(fresh).isdisjoint(_seeds(document, path, "seeds")):
        where = f"{place_of(document, path, 'fresh')}: fresh"
        raise UserError("must list seeds that settings are not chosen by", where=where)
    return fresh


def _seeds(document: CommentedMap, path: Path, key: str) -> tuple[int, ...]:
    seeds = as_python(document[key])
    good = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    if not good or len(set(seeds)) < len(seeds):
        where = f"{place_of(document, path, key)}: {key}"
        raise UserError("must list whole numbers, each once", where=where, fix="as in [7, 8, 9]")
    return tuple(seeds)
