"""What params.yaml lets a user choose is what the code has, and the other way round.

A new loss, judge, source, task or kind of user model is a name in `prlhf.params`, an entry in a
registry and the code itself: three files at most. These tests say which of the first two is
missing.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import pytest

from prlhf.ingest.sources import SOURCES
from prlhf.ingest.tables import READERS
from prlhf.judging.judges import JUDGES
from prlhf.models.user_model import KINDS
from prlhf.params import DataParams, JudgeKind, JudgeParams, MethodParams, TrainParams
from prlhf.params.section import choices, keys_of, meaning
from prlhf.tasks import built_in_tasks
from prlhf.training.losses import LOSSES


class Registry(NamedTuple):
    """Where a name has to be.

    Attributes:
        key: The key of params.yaml that chooses.
        allowed: The annotation that lists what it may choose.
        where: The registry, as a message names it.
        names: What the registry has.
        special: What the key takes besides.
    """

    key: str
    allowed: Any
    where: str
    names: Collection[str]
    special: frozenset[str] = frozenset()


def of(section: Any, key: str) -> Any:
    return keys_of(section)[key].annotation


REGISTRIES = [
    Registry("train.loss", of(TrainParams, "loss"), "LOSSES in training/losses.py", LOSSES),
    Registry(
        "methods.<name>.kind", of(MethodParams, "kind"), "KINDS in models/user_model.py", KINDS
    ),
    Registry("judge.also", JudgeKind, "JUDGES in judging/judges.py", JUDGES),
    Registry(
        "judge.kind",
        of(JudgeParams, "kind"),
        "JUDGES in judging/judges.py",
        JUDGES,
        frozenset({"auto", "none"}),
    ),
    Registry("data.source", of(DataParams, "source"), "SOURCES in ingest/sources.py", SOURCES),
    Registry("data.name", of(DataParams, "name"), "a TASK in tasks/", built_in_tasks()),
]


def missing(registry: Registry) -> list[str]:
    """A sentence for every name that is in one of the two places only."""
    key, allowed, where, names, special = registry
    chosen = set(choices(allowed)) - special
    return [
        *(
            f"params.yaml may say `{key}: {name}`, but there is no {name} among {where}: add it "
            "there, or take it out of the Literal in src/prlhf/params/"
            for name in sorted(chosen - set(names))
        ),
        *(
            f"{where} has {name}, but params.yaml may not say `{key}: {name}`: add it to the "
            "Literal in src/prlhf/params/"
            for name in sorted(set(names) - chosen)
        ),
    ]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.key)
def test_what_may_be_chosen_is_what_there_is(registry):
    sentences = missing(registry)
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.key)
def test_what_was_forgotten_is_said_in_a_sentence(registry):
    first, *others = registry.names
    forgotten = registry._replace(names=[*others, "brand_new"])
    lost, new = missing(forgotten)
    assert lost.startswith(f"params.yaml may say `{registry.key}: {first}`, but there is no")
    assert new.startswith(f"{registry.where} has brand_new, but params.yaml may not say")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.key)
def test_the_reference_explains_what_may_be_chosen(registry):
    """`judge.also` takes what `judge.kind` explains."""
    section = {"train": TrainParams, "data": DataParams, "judge": JudgeParams}
    name, _, key = registry.key.partition(".")
    field = keys_of(section.get(name, MethodParams))[key.removeprefix("<name>.")]
    text = meaning(keys_of(JudgeParams)["kind"] if key == "also" else field)
    for word in set(choices(registry.allowed)) - {"sigmoid", "ipo", "hinge"}:
        assert f"`{word}`" in text, f"the description of {registry.key} does not say what {word} is"


def test_the_reference_names_the_file_formats():
    text = meaning(keys_of(DataParams)["path"])
    for suffix in READERS:
        assert suffix in text, f"the description of data.path does not name {suffix}"


def test_every_judge_with_settings_has_a_section_of_its_name():
    sections = {name for name, field in keys_of(JudgeParams).items() if keys_of(field.annotation)}
    assert sections <= set(JUDGES), f"judge.{sections - set(JUDGES)} belongs to no judge"
