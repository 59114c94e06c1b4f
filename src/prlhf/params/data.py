"""The preference data: where they come from, what is accepted, how they are split."""

from typing import Literal, Self

from pydantic import Field, model_validator

from prlhf.params.section import Section, conflict

SEED_DATA = "data/seed"


class HubParams(Section):
    """`data.hub`: the data set on the Hugging Face hub that `data.source: hub` reads."""

    id: str | None
    """Its name there, `org/name`. Needed when `data.source` is `hub`; for `tldr` and `prism` null
    is where they are published."""
    config: str | None
    """Its configuration; null for the default."""
    split: str = Field(min_length=1)
    """The split to read. The public data sets are read whole."""
    revision: str | None
    """Commit hash or tag, so that a later run reads the same rows."""


class ColumnParams(Section):
    """`data.columns`: our name: the source's name, or null where it has no such column."""

    user_id: str = Field(min_length=1)
    """Who judged the pair."""
    prompt: str = Field(min_length=1)
    """Text, or a list of `{role, content}` messages. If there is no such column, and the responses
    come with their dialogues, what is before them."""
    chosen: str = Field(min_length=1)
    """The response that was preferred. Text, or messages that end with it."""
    rejected: str = Field(min_length=1)
    """The response that was not."""
    user_text: str | None
    """What is known of the user, in words."""
    weight: str | None
    """How much the pair counts; null for 1 each."""
    group: str | None
    """The user's known group. Only evaluation and methods of kind `group` see it."""
    side: str | None
    """The row's side of the split: `train`, `validation` or `test`. Where it is given, `split.test`
    is not used, nor `split.validation` if there is a validation side."""
    unit: str | None
    """What stays on one side of the split: a dialogue, an item."""
    time: str | None
    """When the choice was made. ISO 8601 (UTC unless it says otherwise), or seconds or milliseconds
    since 1970; needed when `split.by` is `time`."""


class TldrParams(Section):
    """`data.tldr`: summaries of Reddit posts that workers compared. See docs/public-data.md."""

    users: int = Field(ge=1)
    """Known users: the workers with most training rows. The others are held out whole."""
    labels: Literal["length", "choice"]
    """Whose preferences. `length`: each worker is made to prefer either longer or shorter
    summaries, whatever they chose; `choice`: the workers' own choices."""
    longer_share: float = Field(ge=0, le=1)
    """`length`: share of users who prefer the longer summary. Rounded to whole users, among the
    known ones and among the others."""


class PrismParams(Section):
    """`data.prism`: dialogues of a survey's participants with many models."""

    seen_users: float = Field(gt=0, le=1)
    """Share of users to train on. They are drawn at random; the others are held out whole, and so
    are users with a single dialogue."""
    train_dialogues: float = Field(gt=0, lt=1)
    """Share of a seen user's dialogues to train on. It is rounded down, to at least one; the other
    dialogues are for testing."""


class DataParams(Section):
    """`data`: the source of preference pairs."""

    source: Literal["builtin", "local", "hub", "tldr", "psoups", "prism"]
    """`builtin`: simulated users that ship with the repository; `local`: your own files; `hub`: a
    data set on the Hugging Face hub; `tldr`, `psoups`, `prism`: public data sets in the form they
    are published in."""
    name: Literal["length", "style"]
    """The built-in data set. `length`: users who want longer or shorter answers; `style`: six users
    with three opposed tastes. Unused by other sources."""
    path: str = Field(min_length=1)
    """The file or directory to read; `data/seed` for builtin and hub. `local`: your .jsonl,
    .ndjson, .json, .csv, .tsv or .parquet file, also packed (.gz, .zst), or a directory with such
    files in it or below it; `tldr`, `psoups` and `prism`: the directory of the published files, or
    `data/seed` to read the hub. The pipeline re-runs when its content changes."""
    hub: HubParams
    columns: ColumnParams
    tldr: TldrParams
    prism: PrismParams
    pairs_per_user: int = Field(ge=1)
    """Pairs that each built-in user judges. Training time grows with it."""
    label_noise: float = Field(ge=0, lt=0.5)
    """Probability that a pair's chosen and rejected are swapped. Test pairs stay as they are: what
    is measured must be true."""
    max_users: int | None = Field(ge=2)
    """For trial runs: a random sample of this many users; null for all."""
    max_rows: int | None = Field(ge=1)
    """For trial runs: a random sample of this many rows; null for all."""

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

    min_users: int = Field(ge=1)
    """Fewer usable users stop the pipeline."""
    keep_ids: list[str]
    """Ids that are somebody's, though they read as missing (`None`). Rows with any other such
    id are set aside; `docs/bring-your-own-feedback.md` says what reads as missing."""
    min_pairs_per_user: int = Field(ge=1)
    """Users with fewer usable pairs are trained as the generic user. Their place in the user model
    is what their few choices make likely."""
    max_prompt_chars: int = Field(ge=1)
    """Longer prompts are quarantined (characters)."""
    max_response_chars: int = Field(ge=1)
    """Longer responses are quarantined (characters)."""
    max_quarantined: float = Field(ge=0, le=1)
    """Share of quarantined rows above which the pipeline stops."""
    max_majority_share: float = Field(ge=0.5, le=1)
    """Share of pairs decided by length above which a warning is given. These are the pairs whose
    longer response is the chosen one (or the rejected one): the labels may carry nothing else."""


class SplitParams(Section):
    """`split`: which pairs and users are held out."""

    by: Literal["prompt", "unit", "response", "time"]
    """What is never on two sides. `prompt`: a prompt, with all other turns of its dialogue; `unit`:
    a value of `data.columns.unit`, or a prompt where that is missing; `response`: a response, for
    all users (pairs whose two are on different sides are set aside); `time`: as `unit`, and the
    newest are held out."""
    validation: float = Field(ge=0, lt=1)
    """Share of prompts for validation. It is a share of units where there are any, of pairs if `by`
    is `response`, and of the training prompts where the data bring a test side."""
    test: float = Field(gt=0, lt=1)
    """Share of prompts for testing; unused if the data bring a test side. Of units or pairs as for
    validation."""
    unseen_users: float = Field(ge=0, lt=1)
    """Share of users held out whole; unused if the data mark their own."""

    @model_validator(mode="after")
    def _prompts_are_left_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise conflict("test", "leaves no prompt for training: validation + test must be < 1")
        return self
