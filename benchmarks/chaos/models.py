"""Part `models`: damaged model directories, each of which is used as it says, or refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from benchmarks.chaos.damage import BYTES
from benchmarks.chaos.tiny import SHAPES, write_model
from benchmarks.chaos.trial import REFUSED, USED, Fault, Part, Trial, quiet, refusal
from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.models.base import Encoder, load_base
from prlhf.params import Params, load
from prlhf.stages import base_model
from prlhf.stages.paths import BASE, PARAMETERS

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 120.0
MEMORY: Final = 8 * 2**30
WORDS: Final = "why is it so"
"""What a prompt says, and must still say behind any template."""

VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 3, 7, 1.5, 1e308, 2**31, 2**40, 10**30, "", "2", "auto", "../x", "\0",
    "é", [], [1], [1, 2, 999], [None], {}, {"a": 1}, "float16", "bfloat16", "float8_e4m3fn",
    "nonsense",
)  # fmt: skip

TEMPLATES: Final = (
    "",
    " ",
    "{{",
    "{% for %}",
    "{{ messages }}",
    "{{ messages[0].content }}",
    "{{ messages[-1].content * 2 }}",
    "{{ messages[0].content | upper }}",
    "{{ messages[0].content[:5] }}",
    "{{ messages[0].content.strip() }}{{ eos_token }}",
    "{{ messages[3].content }}",
    "{{ messages[0].nothing.more }}",
    "{{ undefined_function() }}",
    "{{ 1 + 'a' }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('Conversation roles must alternate') }}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ messages[-1].content }}<|end|>",
    "{% if messages | length > 1 %}{{ none + 1 }}{% endif %}{{ messages[-1].content }}<|end|>",
    "{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}<|end|>",
    "{{ date_string }} {{ messages[-1].content }}<|end|>",
    "{{ range(10 ** 9) | list }}",
    "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{% for i in range(50000) %}{{ messages[0].content }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ self }}{{ messages[0].content }}",
    "{{ messages[0].content }}{{ '\\x00' }}",
    "{{ messages.pop() }}{{ messages[0].content }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages[0].content }}\u202e<|end|>",
    "{{ messages[0].content }}<|end|>{% if add_generation_prompt %}<|end|>{% endif %}",
)


def attempt(trial: Trial, shared: tuple[Path, Params]) -> tuple[str, str]:
    """Take a damaged directory as base model, and read, encode and ask it as the stages do."""
    seeds, params = shared
    shape = trial.random.choice(list(SHAPES))
    given = Path("given")
    shutil.copytree(seeds / shape, given)
    about = [shape]
    for _ in range(trial.random.choice((1, 1, 1, 2, 3))):
        name = trial.random.choice(list(MUTATIONS))
        about.append(_safely(MUTATIONS[name])(trial.random, given))
    trial.tries(", ".join(about))
    try:
        base_model.run(model=params.model.model_copy(update={"name": "./given"}))
        _ask(params)
    except UserError as error:
        quiet(trial.said(), "base_model: ")
        return REFUSED, refusal(error)
    finally:
        if Path("ran").exists():
            raise Fault("ran code", "code from the model's directory was run")
    quiet(trial.said(), "base_model: ")
    return USED, ""


def _ask(params: Params) -> None:
    base = load_base(BASE, "float32")
    encoder = Encoder.from_params(base.chat, params.tokens)
    prompt = encoder.prompt(canonical_prompt(WORDS))
    text = str(base.tokenizer.decode(prompt))
    if (times := text.count(WORDS)) != 1:
        raise Fault("another prompt", f"the words are in it {times} times: {ascii(text)[:200]}")
    response = encoder.response("so")
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[*prompt, *response]])).logits
    if not torch.isfinite(logits).all():
        raise Fault("silent", "a model whose predictions are not finite is used")


# -- mutations: each changes a directory and tells in words what it did ----------------------------


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _pick(random: Random, directory: Path) -> Path:
    return random.choice(_files(directory) or [directory / "config.json"])


def _damaged(random: Random, directory: Path) -> str:
    path, name = _pick(random, directory), random.choice(list(BYTES))
    path.write_bytes(BYTES[name](random, path.read_bytes() if path.exists() else b""))
    return f"{path.name}: {name}"


def _removed(random: Random, directory: Path) -> str:
    path = _pick(random, directory)
    path.unlink(missing_ok=True)
    return f"{path.name} removed"


def _misplaced(random: Random, directory: Path) -> str:
    """Something else where a file should be."""
    path = _pick(random, directory)
    path.unlink(missing_ok=True)
    way = random.choice(("a directory", "a broken link", "a link to itself", "not readable"))
    if way == "a directory":
        path.mkdir()
    elif way == "a broken link":
        path.symlink_to("nowhere")
    elif way == "a link to itself":
        path.symlink_to(path.name)
    else:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        way = "a Git LFS pointer"
    return f"{path.name} is {way}"


def _json(name: str) -> Callable[[Random, Path], str]:
    """Another value for a key, at any depth, of one of the JSON files."""

    def mutate(random: Random, directory: Path) -> str:
        path = directory / name
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError):
            return f"{name} left alone"
        node, key = document, ""
        while isinstance(node, dict) and node:
            key = random.choice(list(node))
            if not isinstance(node[key], dict) or random.random() < 0.4:
                break
            node = node[key]
        if not isinstance(node, dict) or not key:
            return f"{name} left alone"
        value = random.choice(VALUES)
        if random.random() < 0.3:
            del node[key]
            value = "gone"
        elif random.random() < 0.1:
            node[f"{key}_"] = node.pop(key)
        else:
            node[key] = value
        path.write_text(json.dumps(document))
        return f"{name}: {key} is {value!r}"[:120]

    return mutate


def _template(random: Random, directory: Path) -> str:
    template = random.choice(TEMPLATES)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return f"template {template!r}"[:120]


def _end_marks(random: Random, directory: Path) -> str:
    ids: Any = random.choice((0, 1, [0, 1], [1], [], None, 257, 300, -1, "1", [[1]], [1, 10**12]))
    name = random.choice(("generation_config.json", "config.json"))
    path = directory / name
    document = json.loads(path.read_text()) if path.is_file() and path.stat().st_size else {}
    path.write_text(json.dumps(document | {"eos_token_id": ids}))
    return f"{name}: eos_token_id is {ids}"


def _tensors(random: Random, directory: Path) -> str:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = random.choice(list(tensors))
    tensor = tensors[name]
    way = random.choice(
        ("gone", "renamed", "another shape", "empty", "nan", "int64", "half", "more")
    )
    if way in ("gone", "renamed"):
        del tensors[name]
    if way in ("renamed", "more"):
        tensors[f"{name}.other"] = tensor
    elif way == "another shape":
        tensors[name] = tensor[:-1].clone()
    elif way == "empty":
        tensors[name] = tensor[:0].clone()
    elif way == "nan":
        tensors[name] = torch.full_like(tensor, torch.nan)
    elif way == "int64":
        tensors[name] = tensor.long()
    elif way == "half":
        tensors[name] = tensor.half()
    save_file(tensors, path, metadata={"format": random.choice(("pt", "pt", "tf", "np"))})
    return f"tensor {name} {way}"


class _Runs:
    """Unpickling it writes the file `ran`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("ran"), "pickle")


def _pickled(random: Random, directory: Path) -> str:
    """Weights that run code when they are read."""
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs()))
    if random.random() < 0.7:
        (directory / "model.safetensors").unlink(missing_ok=True)
    return "pickled code"


def _own_code(random: Random, directory: Path) -> str:
    """A configuration that names Python files beside it."""
    (directory / "own.py").write_text("open('ran', 'w').write('own code')\n")
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": "own.Own"}
    path = directory / random.choice(("config.json", "tokenizer_config.json"))
    document = json.loads(path.read_text()) if path.is_file() and path.stat().st_size else {}
    kind = random.choice(({}, {"model_type": "own"}, {"tokenizer_class": "Own"}))
    path.write_text(json.dumps(document | {"auto_map": names} | kind))
    return f"own code in {path.name}"


def _more(random: Random, directory: Path) -> str:
    """Files that are often in such directories."""
    name = random.choice(
        ("adapter_config.json", "README.md", "model.safetensors.index.json", "optimizer.pt",
         "added_tokens.json", "special_tokens_map.json", "preprocessor_config.json", "a\nb.json")
    )  # fmt: skip
    content = random.choice(("", "{}", "[]", "null", '{"weight_map": {"a": "b"}}', "nonsense"))
    (directory / name).write_text(content)
    return f"{name!r} is {content!r}"


MUTATIONS: Final[Mapping[str, Callable[[Random, Path], str]]] = {
    "bytes": _damaged,
    "removed": _removed,
    "misplaced": _misplaced,
    "config": _json("config.json"),
    "config ": _json("config.json"),
    "tokenizer": _json("tokenizer.json"),
    "tokenizer config": _json("tokenizer_config.json"),
    "generation config": _json("generation_config.json"),
    "template": _template,
    "template ": _template,
    "end marks": _end_marks,
    "tensors": _tensors,
    "pickle": _pickled,
    "own code": _own_code,
    "more": _more,
}


def _safely(mutation: Callable[[Random, Path], str]) -> Callable[[Random, Path], str]:
    def mutate(random: Random, directory: Path) -> str:
        try:
            return mutation(random, directory)
        except (ValueError, OSError, AttributeError, TypeError, RuntimeError) as error:
            return f"nothing ({type(error).__name__})"  # damaged before

    return mutate


def setup(directory: Path) -> tuple[Path, Params]:
    """A sound model of each shape, and the project's parameters."""
    torch.set_num_threads(1)
    for shape in SHAPES:
        write_model(directory / shape, shape)
    return directory, load(ROOT / PARAMETERS)


MODELS: Final = Part("models", "Damaged model directories", 500, attempt, PATIENCE, MEMORY, setup)
