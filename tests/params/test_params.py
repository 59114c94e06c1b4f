"""params.yaml: the committed file is good, and every fault in one is named with its line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from prlhf.infra.errors import UserError
from prlhf.params import Params, load
from prlhf.params.loading import MAX_DEPTH, as_python, parse_yaml, read_yaml
from prlhf.params.section import (
    all_keys,
    commented,
    expectation,
    keys_of,
    reference_page,
    same,
)

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")
DECLARED = {
    name: stage.get("params", []) for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()
}


def line(key: str) -> int:
    """The line of the committed file that a key stands in."""
    node, number = read_yaml(ROOT / "params.yaml"), 0
    for step in key.split("."):
        number = node.lc.key(step)[0] + 1
        node = node[step]
    return number


def edited(**changes: str) -> str:
    """The committed file with other text in the place of keys (`train__beta="beta: 1"`).

    The change must not depend on the committed values, which are there to be tuned.
    """
    lines = COMMITTED.splitlines()
    for key, new in changes.items():
        position = line(key.replace("__", ".")) - 1
        indent = lines[position][: -len(lines[position].lstrip())]
        lines[position] = f"{indent}{new}"
    return "\n".join(lines)


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """The error lines of a params.yaml: of a text, or of the committed file with changes."""
    monkeypatch.chdir(tmp_path)

    def check(text: str | None = None, **changes: str) -> list[str]:
        Path("params.yaml").write_text(
            edited(**changes) if text is None else text, encoding="utf-8"
        )
        with pytest.raises(UserError) as caught:
            load()
        return caught.value.lines()

    return check


def test_the_committed_file_is_good():
    params = load(ROOT / "params.yaml")
    assert params.methods["dpo"].kind == "uniform"
    assert params.validate_.min_users >= 1
    assert params.optimizer.max_steps is None


def test_every_committed_key_has_a_comment_or_holds_others():
    """The file is the first place where a user looks for a meaning."""
    lines = COMMITTED.splitlines()
    bare = [
        text.strip()
        for text in lines
        if text
        and not text.lstrip().startswith("#")
        and "#" not in text
        and text.split(":", 1)[1].strip()
    ]
    obvious = {"split: train", "dropout: 0.0", "text: false", "kind: uniform", "kind: cluster"}
    assert set(bare) <= obvious


def test_values_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load(ROOT / "params.yaml").train.alpha = 0.1


def test_a_misspelt_key_is_one_fault_with_the_nearest_key(faults):
    assert faults(train__alpha="alhpa: 0.5") == [
        f"params.yaml:{line('train.alpha')}: train.alhpa: unknown key (did you mean train.alpha?)"
    ]


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(faults):
    [problem] = faults(user_model__tokens="tokens: 4\n  beta: 0.5")
    assert problem.endswith("user_model.beta: unknown key (did you mean train.beta?)")


def test_a_key_like_no_other_lists_what_is_known(faults):
    [problem] = faults(split="split:\n  zzz: 1")
    known = "by, validation, test, unseen_users"
    assert problem.endswith(f"split.zzz: unknown key (known here: {known})")


def test_every_fault_is_reported_in_the_order_of_the_file(faults):
    problems = faults(
        judge__kind="kind: oracel",
        optimizer__max_steps="max_steps: 1.5",
        data__label_noise="label_noise: 0.5",
        seed="seed: seven",
    )
    assert problems == [
        f"params.yaml:{line('seed')}: seed: must be a whole number (from 0 to below "
        '4294967296), not the text "seven"',
        f"params.yaml:{line('data.label_noise')}: data.label_noise: must be a number (from 0 to "
        "below 0.5), not 0.5",
        f"params.yaml:{line('optimizer.max_steps')}: optimizer.max_steps: must be a whole number "
        "(at least 1) or null, not 1.5",
        f"params.yaml:{line('judge.kind')}: judge.kind: must be auto, oracle, feature_reward, "
        'reward_model, llm or none, not the text "oracel"',
    ]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("train.beta", "0", "must be a number (above 0), not 0"),
        ("train.beta", ".nan", "must be a number (above 0), not nan"),
        ("train.beta", ".inf", "must be a number (above 0), not inf"),
        ("train.beta", "", "must be a number (above 0), not null"),
        ("train.beta", "true", "must be a number (above 0), not true"),
        ("train.beta", "'0.5'", 'must be a number (above 0), not the text "0.5"'),
        ("train.beta", "[0.5]", "must be a number (above 0), not [0.5]"),
        ("train.beta", "{a: 1}", "must be a number (above 0), not a mapping"),
        ("train.alpha", "1.1", "must be a number (from 0 to 1), not 1.1"),
        ("train.label_smoothing", "0.5", "must be a number (from 0 to below 0.5), not 0.5"),
        ("optimizer.batch_size", "4.0", "must be a whole number (at least 1) or auto, not 4.0"),
        ("optimizer.lora_lr", "0", "must be a number (above 0) or auto, not 0"),
        ("optimizer.eval_every", "30", "must be a number (above 0 and at most 1), not 30"),
        ("optimizer.gradient_checkpointing", "0", "must be true or false, not 0"),
        (
            "optimizer.lora.targets",
            "[]",
            "must be a list of names (not empty), auto or all, not []",
        ),
        (
            "optimizer.lora.targets",
            "[1]",
            "must be a list of names (not empty), auto or all, not [1]",
        ),
        (
            "user_model.clusters",
            "many",
            "must be a whole number (at least 1) or auto, not the text",
        ),
        ("user_model.clusters", "0", "must be a whole number (at least 1) or auto, not 0"),
        (
            "methods.dpo.kind",
            "cluser",
            "must be uniform, individual, cluster or group, not the text",
        ),
        ("methods.dpo", "3\n  x:", "must be a mapping, not 3"),
        ("data.path", "''", 'must be text (not empty), not the text ""'),
        ("model.revision", "2024-01-01", "must be text or null, not 2024-01-01"),
    ],
)
def test_a_value_of_a_wrong_type_or_out_of_range(faults, key, value, problem):
    [found] = faults(**{key.replace(".", "__"): f"{key.rpartition('.')[2]}: {value}"})
    assert found.startswith(f"params.yaml:{line(key)}: {key}: {problem}")


@pytest.mark.parametrize("name", ["base", "user_model", "../dpo", "a b", ""])
def test_a_method_that_cannot_name_a_directory(faults, name):
    [problem] = faults(methods__dpo=f"'{name}':")
    assert f": methods.{name}: is no name for a method" in problem


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        (
            {
                "optimizer__batch_size": "batch_size: 4",
                "optimizer__micro_batch_size": "micro_batch_size: 3",
            },
            "optimizer.micro_batch_size",
            "must divide batch_size (4), not 3",
        ),
        (
            {"split__validation": "validation: 0.5", "split__test": "test: 0.5"},
            "split.test",
            "leaves no prompt for training: validation + test must be < 1",
        ),
        (
            {"judge__kind": "kind: none", "judge__also": "also: [oracle]"},
            "judge.also",
            "must be empty when judge.kind is none",
        ),
        (
            {"judge__kind": "kind: oracle", "judge__also": "also: [oracle]"},
            "judge.also",
            "names a judge twice, or the one of judge.kind",
        ),
        (
            {"judge__kind": "kind: llm", "judge__llm__model": "model: null"},
            "judge.llm.model",
            "must name a model when the judge is llm",
        ),
        (
            {
                "judge__llm__max_cost": "max_cost: 1.0",
                "judge__llm__price_input": "price_input: 0.0",
            },
            "judge.llm.max_cost",
            "needs judge.llm.price_input or price_output above 0",
        ),
        (
            {"data__source": "source: local", "data__path": "path: data/seed"},
            "data.path",
            "must name your file or directory when data.source is local",
        ),
        (
            {"data__source": "source: hub"},
            "data.hub.id",
            "must name a data set (org/name) when data.source is hub",
        ),
        (
            {"compare__trained": "trained: [dpo, cpdo]", "compare__all": "all: [base, dpo, cpdo]"},
            "compare.trained",
            f"names cpdo, but methods has [{', '.join(load(ROOT / 'params.yaml').methods)}]",
        ),
        (
            {"compare__trained": "trained: [dpo, pdpo, dpo]"},
            "compare.trained",
            "names dpo more than once",
        ),
        (
            {"compare__all": "all: [base, pdpo, dpo, base]"},
            "compare.all",
            "names base more than once",
        ),
        (
            {"compare__all": "all: [dpo, pdpo]"},
            "compare.all",
            "must name base and all of compare.trained: [base, dpo, pdpo]; prompted may stand "
            "beside them",
        ),
        (
            {"compare__trained": "trained: [pdpo]"},
            "compare.all",
            "must name base and all of compare.trained: [base, pdpo]; prompted may stand "
            "beside them",
        ),
        (
            {"reference__features": "features: false"},
            "reference.features",
            "must be true, because pretrain.method is reward",
        ),
        (
            {
                "reference__features": "features: false",
                "pretrain__method": "method: none",
                "judge__kind": "kind: feature_reward",
            },
            "reference.features",
            "must be true, because feature_reward judges",
        ),
        (
            {"reward_models": "reward_models: [cpdo]"},
            "reward_models",
            f"names cpdo, but methods has [{', '.join(load(ROOT / 'params.yaml').methods)}]",
        ),
        (
            {"reward_models": "reward_models: [pdpo, pdpo]"},
            "reward_models",
            "names pdpo more than once",
        ),
        (
            {
                "methods__dpo": "reward_pdpo:",
                "compare__trained": "trained: [reward_pdpo, pdpo]",
                "compare__all": "all: [base, reward_pdpo, pdpo]",
                "reward_models": "reward_models: [pdpo]",
            },
            "reward_models",
            "would write models/reward_pdpo, where the method reward_pdpo is",
        ),
        (
            {"optimizer__batch_size": "batch_size: 6"},
            "optimizer.micro_batch_size",
            "must divide batch_size (6), not 4",
        ),
        (
            {"compare__trained": "trained: [pdpo]", "compare__all": "all: [base, pdpo]"},
            "evaluate.baseline",
            "names dpo, but compare.all has [base, pdpo]",
        ),
        (
            {"evaluate__subject": "subject: pdpo_text"},
            "evaluate.subject",
            "names pdpo_text, but compare.all has [base, dpo, pdpo]",
        ),
        (
            {"evaluate__subject": "subject: dpo"},
            "evaluate.subject",
            "must be another method than evaluate.baseline",
        ),
    ],
)
def test_values_that_contradict_each_other(faults, changes, key, problem):
    assert faults(**changes) == [f"params.yaml:{line(key)}: {key}: {problem}"]


def test_clusters_may_be_chosen_on_the_data(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(edited(user_model__clusters="clusters: auto"))
    assert load(path).user_model.clusters == "auto"


def test_a_missing_key_is_named_at_its_section(faults):
    [problem] = faults(train__beta="# nothing")
    assert problem == (
        f"params.yaml:{line('train')}: train.beta: missing key (docs/parameters.md lists the keys)"
    )


def test_every_key_is_required(faults):
    """DVC sees the file only: a default in the code could change and re-run nothing."""
    assert [field for field in walk(Params) if not field.is_required()] == []
    problems = faults(text="seed: 7\n")
    assert [problem.split(": ")[1] for problem in problems] == [
        name for name in keys_of(Params) if name != "seed"
    ]


def walk(model):
    for field in (keys_of(model) or {}).values():
        yield field
        yield from walk(field.annotation)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "params.yaml: is empty (docs/parameters.md lists the keys)"),
        ("# nothing\n", "params.yaml: is empty (docs/parameters.md lists the keys)"),
        ("- 1\n", "params.yaml: must hold keys and values, like `seed: 7`"),
        ("seed: 7\nmodel: [a\n", "params.yaml:3: is not valid YAML: "),
        ("seed: 7\n\tmodel: 1\n", "params.yaml:2: is not valid YAML: "),
        ("seed: 7\nseed: 8\n", "params.yaml:2: is not valid YAML: found duplicate key"),
        ("seed: 7\nmodel: *there\n", "params.yaml:2: refers to another value as *there (write"),
        ("seed: 7\nmodel: &a [1, *a]\n", "params.yaml:2: refers to another value as *a (write"),
        ("seed: !x 7\n", "params.yaml:1: has the tag !x (leave the tag out)"),
        ("a:\n  - !y [1]\n", "params.yaml:2: has the tag !y (leave the tag out)"),
        # What stands behind is no YAML, and is not read any more.
        ("seed: 7\nmodel: " + "[" * 3000 + "}", "params.yaml:2: is nested too deeply (docs/"),
        ("- " * 3000 + "}", "params.yaml:1: is nested too deeply (docs/"),
    ],
)
def test_a_file_that_is_no_yaml_mapping(faults, text, problem):
    problems = faults(text=text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_values_may_be_nested_up_to_the_limit():
    def nested(depth: int) -> str:  # the mapping is the first
        return "a: " + "[" * (depth - 1) + "]" * (depth - 1)

    value = as_python(parse_yaml(nested(MAX_DEPTH), Path("x")))["a"]
    depth = 1
    while isinstance(value, list):
        value, depth = (value or [None])[0], depth + 1
    assert depth == MAX_DEPTH
    with pytest.raises(UserError, match="^x:1: is nested too deeply"):
        parse_yaml(nested(MAX_DEPTH + 1), Path("x"))


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: 7\nmodel: caf\xe9\n")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:2: is not UTF-8 text"


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="params.yaml: no such file"):
        load(tmp_path / "params.yaml")


def test_other_method_names_and_more_methods_are_fine(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        edited(
            methods__dpo="c-3_x:\n    kind: cluster\n    text: true\n  dpo:",
            compare__trained="trained: [c-3_x, dpo]",
            compare__all="all: [dpo, base, c-3_x, prompted]",
            evaluate__subject="subject: c-3_x",
        )
    )
    params = load(path)
    assert list(params.methods)[:2] == ["c-3_x", "dpo"]
    assert params.methods["c-3_x"].text
    assert params.compare.trained == ["c-3_x", "dpo"]


@pytest.mark.parametrize("path", list(all_keys(Params)), ids=".".join)
def test_every_key_says_what_it_is(path):
    field, keys = None, keys_of(Params)
    for step in path:
        field = keys[step]
        keys = keys_of(field.annotation)
    assert keys is not None or field.description
    assert expectation(field)


def test_the_reference_is_current():
    """`prlhf params docs` writes it."""
    current = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert current == reference_page(Params, DECLARED)


def test_the_committed_comments_are_current_and_short():
    """`prlhf params docs` writes them."""
    assert commented(COMMITTED, Params) == COMMITTED
    assert [text for text in COMMITTED.splitlines() if len(text) > 100] == []


def test_comments_come_from_the_typed_parameters():
    text = edited(
        seed="seed: 11 # mine",
        data__path="path: 'a # b'  # mine",
        model__tokenizer__chat_template="chat_template: |\n      {{ x }}  # a template's own",
        train__loss="loss: ipo",
        judge__llm__criteria="criteria: # mine\n      cats: likes cats  # mine",
        methods__dpo="mine: # mine",
    )
    found = commented(text, Params).splitlines()
    assert f"{'seed: 11':32}# seed of everything random: sampling, splits, training" in found
    assert any(one.startswith("  path: 'a # b'                 # the file or dir") for one in found)
    assert "    chat_template: |" in found
    assert "      {{ x }}  # a template's own" in found
    assert f"{'  loss: ipo':32}# loss of a preference: sigmoid | ipo | hinge | robust" in found
    assert f"{'    criteria:':32}# criteria of your own, by group" in found
    assert "      cats: likes cats  # mine" in found
    assert "  mine: # mine" in found
    again = commented(commented(text, Params), Params)
    assert again == commented(text, Params)
    assert as_python(parse_yaml(again, Path("x"))) == as_python(parse_yaml(text, Path("x")))


def test_an_edited_value_leaves_the_comments_current():
    changed = edited(optimizer__epochs="epochs: 12.25 # passes over the training pairs")
    assert same(commented(changed, Params), changed)
    stale = edited(optimizer__epochs="epochs: 12.25 # rounds")
    assert not same(commented(stale, Params), stale)


def test_the_reference_has_every_key_its_range_and_its_readers():
    text = reference_page(Params, DECLARED)
    for path in all_keys(Params):
        if path in (("methods",), ("judge", "llm", "criteria")) or any(
            other[: len(path)] == path != other for other in all_keys(Params)
        ):
            continue
        assert f"| `{'.'.join(path)}` |" in text
    assert "| `methods.<name>.kind` | uniform, individual, cluster or group |" in text
    assert "| `judge.llm.criteria.<name>` | text | not empty | What users of this gr" in text
    assert "| `train.alpha` | a number | from 0 to 1 | Weight of the" in text
    assert "| `user_model.clusters` | a whole number or auto | at least 1 | " in text
    section = text.split("\n## train\n")[1].split("\n## ")[0]
    assert "Read by: `train`." in section
