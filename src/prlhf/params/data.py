"""The preference data: where it comes from, what is accepted, how it is split."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prlhf.params.section import Section, conflict

SEED_DATA = "data/seed"

PUBLIC_HUB_IDS = {
    "tldr": "openai/summarize_from_feedback",
    "prism": "HannahRoseKirk/prism-alignment",
}
"""Where the public data sets are on the hub; PSOUPS' authors publish theirs elsewhere."""


class HubParams(Section):
    """`data.hub`: a data set on the Hugging Face hub."""

    id: str | None = Field(
        description="`org/name`; needed when `data.source` is `hub`. For `tldr` and `prism` null "
        "is where they are published."
    )
    config: str | None = Field(description="The data set's configuration; null for its default.")
    split: str = Field(
        min_length=1, description="The split to read; the public data sets are read whole."
    )
    revision: str | None = Field(
        description="Commit hash or tag, so that a later run reads the same rows."
    )


class ColumnParams(Section):
    """`data.columns`: our name -> the source's name. Null: the source has no such column."""

    user_id: str = Field(min_length=1, description="Who judged the pair.")
    prompt: str = Field(
        min_length=1, description="The prompt: text, or a list of `{role, content}` messages."
    )
    chosen: str = Field(min_length=1, description="The response that was preferred.")
    rejected: str = Field(min_length=1, description="The response that was not.")
    user_text: str | None = Field(description="What is known of the user, in words.")
    weight: str | None = Field(description="How much the pair counts; 1 without such a column.")
    group: str | None = Field(
        description="The user's known group. Only evaluation sees it, never a model."
    )


class TldrParams(Section):
    """`data.tldr`: summaries of Reddit posts, compared by workers (docs/public-data.md)."""

    users: int = Field(
        ge=1,
        description="The workers with most training rows, this many, are the known users; the "
        "others are held out whole.",
    )
    labels: Literal["length", "choice"] = Field(
        description="`length`: each worker is made to prefer either longer or shorter summaries, "
        "whatever was chosen; `choice`: the workers' own choices."
    )
    longer_share: float = Field(
        ge=0,
        le=1,
        description="Labels `length`: share of the users who prefer the longer summary, met as "
        "exactly as whole users allow, among the known and among the others.",
    )


class PrismParams(Section):
    """`data.prism`: dialogues of a survey's participants with many models."""

    seen_users: float = Field(
        gt=0,
        le=1,
        description="Share of users to train on, a random choice; the others are held out whole, "
        "and so are users with a single dialogue.",
    )
    train_dialogues: float = Field(
        gt=0,
        lt=1,
        description="Share of a seen user's dialogues to train on, rounded down but at least one; "
        "the others are for testing.",
    )


class DataParams(Section):
    """`data`: the source of preference pairs."""

    source: Literal["builtin", "local", "hub", "tldr", "psoups", "prism"] = Field(
        description="`builtin`: simulated users that ship with the repository; `local`: your own "
        "files; `hub`: a data set on the Hugging Face hub; `tldr`, `psoups`, `prism`: public data "
        "sets in the form they are published in."
    )
    name: Literal["length", "style"] = Field(
        description="The built-in data set. `length`: users who want longer or shorter answers; "
        "`style`: six users with three opposed tastes. Unused by other sources."
    )
    path: str = Field(
        min_length=1,
        description="What is read from disk. `local`: your .jsonl, .json, .csv, .tsv or .parquet "
        "file, also gzipped (.gz), or a directory of such files; `tldr`, `psoups` and `prism`: the "
        "directory of the published files, or `data/seed` to read the hub; `builtin` and `hub`: "
        "leave it at `data/seed`. The pipeline re-runs when its content changes.",
    )
    hub: HubParams
    columns: ColumnParams
    tldr: TldrParams
    prism: PrismParams
    pairs_per_user: int = Field(
        ge=1, description="Pairs that each built-in user judges. Training time grows with it."
    )
    label_noise: float = Field(
        ge=0,
        lt=0.5,
        description="Probability that a pair's chosen and rejected are swapped.",
    )
    max_users: int | None = Field(
        ge=2, description="For trial runs: keep a random sample of this many users; null for all."
    )
    max_rows: int | None = Field(
        ge=1, description="For trial runs: keep a random sample of this many rows; null for all."
    )

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if self.source == "local" and self.path == SEED_DATA:
            raise conflict("path", "must name your file or directory when data.source is local")
        if self.source == "hub" and not self.hub.id:
            raise conflict("hub.id", "must name a data set (org/name) when data.source is hub")
        if self.source == "psoups" and self.path == SEED_DATA and not self.hub.id:
            raise conflict(
                "path", "must name the published file when data.source is psoups and no data.hub.id"
            )
        return self

    @property
    def remote(self) -> bool:
        """Whether the rows come from the hub."""
        return self.source == "hub" or (
            self.source in ("tldr", "psoups", "prism") and self.path == SEED_DATA
        )


class ValidateParams(Section):
    """`validate`: which rows are set aside, and when there are too few left to go on."""

    min_users: int = Field(ge=1, description="Fewer usable users stop the pipeline.")
    min_pairs_per_user: int = Field(
        ge=1, description="Users with fewer usable pairs are quarantined."
    )
    max_prompt_chars: int = Field(ge=1, description="Longer prompts are quarantined (characters).")
    max_response_chars: int = Field(
        ge=1, description="Longer responses are quarantined (characters)."
    )
    max_quarantined: float = Field(
        ge=0, le=1, description="Share of quarantined rows above which the pipeline stops."
    )
    max_majority_share: float = Field(
        ge=0.5,
        le=1,
        description="Share of pairs whose longer response is the chosen one (or the rejected one) "
        "above which a warning says that the labels may carry nothing but length.",
    )


class SplitParams(Section):
    """`split`: which prompts and users are held out. A prompt is never on two sides."""

    validation: float = Field(
        ge=0,
        lt=1,
        description="Share of prompts for validation; of the training prompts where the data set "
        "brings its own test side.",
    )
    test: float = Field(
        gt=0,
        lt=1,
        description="Share of prompts for testing; unused where the data set brings its own test "
        "side.",
    )
    unseen_users: float = Field(
        ge=0,
        lt=1,
        description="Share of users held out whole; a data set that marks its own unseen users "
        "keeps its own.",
    )

    @model_validator(mode="after")
    def _prompts_are_left_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise conflict("test", "leaves no prompt for training: validation + test must be < 1")
        return self
