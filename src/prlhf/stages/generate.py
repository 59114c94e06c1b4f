"""Stage `generate`: answers to held-out prompts, for each user and for the generic user."""

from pathlib import Path
from typing import Final

import pandas as pd

from prlhf.data import BASE_METHOD, require_user_texts
from prlhf.data.ids import content_hash
from prlhf.generation import complete, new_prompts, read_prompts, request_table, sample_prompts
from prlhf.infra import distributed
from prlhf.infra.io import (
    SOURCE,
    checkpoint_directory,
    discard,
    read_parquet,
    run_key,
    write_parquet,
)
from prlhf.infra.kept import KeptWork
from prlhf.infra.progress import say
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import GenerateParams, ModelParams, TokenParams
from prlhf.sampling import decoding
from prlhf.stages.paths import (
    BASE,
    GENERATED,
    PREPARED,
    USERS,
    method_directory,
    split_table,
)

PARAMS: Final = ("seed", "model", "tokens", "generate")

MAX_UNFINISHED: Final = 0.05
"""A larger share of answers cut off is warned of."""

PROMPT_COLUMNS: Final = ("prompt_id", "prompt")
USER_COLUMNS: Final = ("user_id", "user_index", "group", "user_text", "seen")


def run(
    *, seed: int, model: ModelParams, tokens: TokenParams, generate: GenerateParams, name: str
) -> None:
    """Write `data/generated/<name>.parquet`.

    Raises:
        UserError: the method reads users' texts and there are none, or the prompts cannot be read.
    """
    label = f"generate {name}"
    prompts = prompts_to_answer(Path(generate.prompts_path), label)
    lm = load_method(name, model.dtype, tokens)
    users = read_parquet(USERS, USER_COLUMNS)
    if lm.encoder.reads_text:
        require_user_texts(users["user_text"], f"method {name}")
    rows = request_table(
        sample_prompts(prompts, generate.prompts, seed),
        users,
        personalized=lm.personalized,
        reads_text=lm.encoder.reads_text,
        most=generate.users,
    )
    settings = {"seed": seed, "model": model, "tokens": tokens, "generate": generate, "name": name}
    # The file beside the base model's weights says what they are.
    inputs = [BASE / SOURCE, PREPARED, Path(generate.prompts_path)]
    if name != BASE_METHOD:
        inputs.append(method_directory(name))
    key = run_key(settings, inputs)
    distributed.require_agreement(key)
    work = KeptWork(checkpoint_directory(f"generate-{name}", key))
    completions = complete(
        lm,
        list(zip(rows["user_index"].tolist(), rows["prompt"].tolist(), strict=True)),
        lm.encoder.user_texts(rows),
        config=decoding(
            lm.encoder.chat.conventions.stops,
            stop_texts=lm.encoder.chat.conventions.stop_texts,
            max_new_tokens=generate.max_new_tokens,
            temperature=generate.temperature,
            top_p=generate.top_p,
            repetition_penalty=generate.repetition_penalty,
            no_repeat_ngram=generate.no_repeat_ngram,
        ),
        seed=seed,
        batch_size=generate.batch_size,
        label=label,
        work=work,
    )
    if not distributed.is_main():
        return
    rows["generation_id"] = [
        content_hash(name, condition, user or "", prompt)
        for condition, user, prompt in zip(
            rows["condition"], rows["user_id"], rows["prompt_id"], strict=True
        )
    ]
    rows["method"] = name
    rows["text"] = [lm.encoder.chat.decode(completion.ids) for completion in completions]
    rows["tokens"] = [len(completion.ids) for completion in completions]
    rows["finished"] = [completion.finished for completion in completions]
    _say_unfinished(1.0 - float(rows["finished"].mean()), generate.max_new_tokens, label)
    columns = ["generation_id", "method", "condition", "user_id", "group", *PROMPT_COLUMNS]
    write_parquet(GENERATED / f"{name}.parquet", rows[[*columns, "text", "tokens", "finished"]])
    discard(work.directory)


def _say_unfinished(share: float, most: int, label: str) -> None:
    found = f"{share:.1%} of the answers are unfinished"
    if share > MAX_UNFINISHED:
        found = f"warning: {found}: they were cut off at generate.max_new_tokens: {most}; raise it"
    say(f"{label}: {found}")


def load_method(name: str, dtype: str, tokens: TokenParams) -> PersonalizedLM:
    """The model in `models/<name>`, or the base model itself for `base`."""
    if name != BASE_METHOD:
        return PersonalizedLM.from_pretrained(method_directory(name), base=BASE, dtype=dtype)
    base = load_base(BASE, dtype)
    return PersonalizedLM.reference(base, Encoder.from_params(base.chat, tokens))


def prompts_to_answer(path: Path, label: str) -> pd.DataFrame:
    """The prompts of the held-out pairs, or those of another file without the learned ones."""
    if path == split_table("test"):
        return read_parquet(path, PROMPT_COLUMNS)
    found = read_prompts(path)
    unseen = read_parquet(split_table("unseen"), ["prompt_id", "prompt_split"])
    learned = set(unseen.loc[unseen["prompt_split"] != "test", "prompt_id"])
    for split in ("train", "validation"):
        learned |= set(read_parquet(split_table(split), ["prompt_id"])["prompt_id"])
    # Where responses or units are divided, prompts are trained on and held out at the same time.
    learned -= set(read_parquet(split_table("test"), ["prompt_id"])["prompt_id"])
    new = new_prompts(found, learned, path)
    if len(new) < len(found):
        say(
            f"{label}: {len(found) - len(new)} of {len(found)} prompts of {path} are left out: "
            "they are in the training or validation data"
        )
    return new
