"""The models, the methods, how they are trained, and on how many processes."""

import datetime
from typing import Annotated, Any, Literal, Self

import annotated_types as at
from pydantic import Field, field_validator, model_validator

from prlhf.params.section import Section, conflict, listed, require_distinct


class TokenizerParams(Section):
    """`model.tokenizer`: for models published without a tokenizer or a chat template."""

    name: str | None = Field(min_length=1)
    """Hub id (`org/name`) or local directory; null for the model's own."""
    revision: str | None
    """Commit hash or tag; required for a hub id. The commit it resolves to is recorded beside the
    model."""
    chat_template: str | None = Field(min_length=1)
    """How messages become a text; null for the tokenizer's own way. A template in Jinja, or the
    name of a known one (`tulu`). Without any, prompts are read as they are, and messages one below
    the other."""
    date: str
    """The day that a chat template prints as today's, `2025-01-01`. A prompt must be the same one
    tomorrow."""

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_day(cls, value: Any) -> Any:
        if isinstance(value, datetime.date):  # as YAML reads it without quotes
            return value.isoformat()
        if isinstance(value, str):
            try:
                return datetime.date.fromisoformat(value).isoformat()
            except ValueError as error:
                raise ValueError("must be a day, such as 2025-01-01") from error
        return value


class ModelParams(Section):
    """`model`: the frozen base language model."""

    name: str = Field(min_length=1)
    """Built-in name, hub id (`org/name`) or local directory. The built-in model is
    `smollm2-135m-instruct`. A directory is read once: after changing what is in it, run `dvc repro
    -f base_model`."""
    revision: str | None
    """Commit hash or tag; required for a hub id. The commit it resolves to is recorded beside the
    model."""
    tokenizer: TokenizerParams
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"]
    """Precision of weights. `auto` is bfloat16 on CUDA and float32 on CPUs, where bfloat16 can
    be many times slower. `nf4` is 4 bits a weight, computed in bfloat16 (QLoRA); it needs CUDA and
    `pip install 'prlhf[qlora]'`."""


class TokenParams(Section):
    """`tokens`: the longest texts, in tokens of the base model. Memory and time grow with them."""

    max_prompt: int = Field(ge=8)
    """Longer prompts lose their middle. First the exchanges between the first and the last one go,
    then the first, then words."""
    max_response: int = Field(ge=2)
    """Longer responses lose their end. The end mark counts; a response that is cut has none."""
    max_user_text: int = Field(ge=8)
    """Longer texts of users lose their end. Methods with `text: true` read them in front of the
    prompt, and so does `prompted`."""
    reference_text: bool
    """Whether the reference reads users' texts, too, where a method does. In the paper it sees the
    prompt only."""


class ReferenceParams(Section):
    """`reference`: what the base model's pass over all texts keeps of them."""

    features: bool
    """Whether the texts' features are kept. They take twice the model's width in bytes a text.
    `pretrain.method: reward` and the judge `feature_reward` read them; false saves the space."""


class UserModelParams(Section):
    """`user_model`: the embeddings that stand for a user in front of the prompt."""

    tokens: int = Field(ge=1)
    """User tokens T_u: embeddings per user."""
    clusters: Annotated[int, at.Ge(1)] | Literal["auto"]
    """Preference clusters K; auto chooses K by cross-validation. For kinds `cluster` and
    `individual`, and the pretraining that finds them."""
    max_clusters: int = Field(ge=1)
    """The largest K that `auto` tries."""
    init_scale: float = Field(ge=0)
    """First group offsets, in standard deviations of the word embeddings."""
    weights_spread: float | None = Field(gt=0)
    """`cluster`: how far users' weights move from their first values. It is the
    standard deviation of a prior on the logits that counts once per user: few choices leave a user
    near there, many move as far as they say. Null for no prior."""
    offset_spread: float | None = Field(gt=0)
    """`individual`: how far users are from others of their mixture. The standard deviation of the
    same kind of prior, on the entries of a user's own offset, in standard deviations of the word
    embeddings. Null for no prior."""
    generic_pull: float = Field(ge=0)
    """`cluster`: pull of the generic user's weights to the users' mean. In nats for each user at a
    distance of 1."""


class PretrainParams(Section):
    """`pretrain`: learn who the users are before the language model is tuned."""

    method: Literal["reward", "soft_prompt", "none"]
    """`reward`: a hierarchical reward model on the reference features (seconds to minutes).
    `soft_prompt`: P-DPO on the user model alone, with the language model frozen (minutes on a CPU).
    `none`: start from the generic user."""
    dimensions: int = Field(ge=1)
    """`reward`: directions in which users differ, at most."""
    strength: float = Field(gt=0)
    """`reward`: how much chance a difference between users must exceed. The penalty on such
    differences, in units of what choices drawn without any would give."""
    rank: int = Field(ge=1)
    """`reward`: principal axes of the features that are used, at most."""
    max_pairs: int = Field(ge=1)
    """`reward`: pairs that tastes are learned from, at most. They are those of whole users; all
    users are then placed by their own pairs."""
    folds: int = Field(ge=2)
    """`reward`: parts of the training pairs, for the cross-validation. Whole units of `split.by`
    each; it says whether users differ, how much, and into how many clusters."""
    soft_prompt_alpha: float = Field(ge=0, le=1)
    """`soft_prompt`: weight of the personalised term."""
    soft_prompt_steps: int = Field(ge=1)
    """`soft_prompt`: optimiser steps."""
    soft_prompt_lr: float = Field(gt=0)
    """`soft_prompt`: learning rate, in units of the word embeddings. See `optimizer.user_lr`; for
    mixtures' weights, as it is."""
    soft_prompt_beta: float = Field(gt=0)
    """`soft_prompt`: beta of its P-DPO."""
    soft_prompt_batch_size: int = Field(ge=1)
    """`soft_prompt`: pairs per step."""


class MethodParams(Section):
    """`methods.<name>`: a model that can be trained."""

    kind: Literal["uniform", "individual", "cluster", "group"]
    """The preference assumption. `uniform`: no user tokens, plain DPO; `individual`: an offset per
    user; `cluster`: a mixture of K cluster embeddings per user; `group`: no user tokens, but an
    adapter for each known group of users, trained on the group's pairs: `optimizer.epochs` passes
    over them, `optimizer.max_steps` steps at most."""
    text: bool
    """Whether it reads `user_text`, what is known of the user in words, in front of the prompt; for
    unknown users, too."""


class CompareParams(Section):
    """`compare`: which of the methods run."""

    trained: list[str] = Field(min_length=1)
    """The methods to train: keys of `methods`, each once."""
    all: list[str] = Field(min_length=1)
    """Models to evaluate: base, all of `trained`, and prompted if wanted. They answer, and are
    scored. `base` is the untuned model, `prompted` the untuned model behind the user's text; each
    once."""

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        require_distinct("trained", self.trained)
        require_distinct("all", self.all)
        # A model left over from earlier parameters must not be evaluated.
        wanted = ["base", *self.trained]
        if set(self.all) - {"prompted"} != set(wanted):
            raise conflict(
                "all",
                f"must name base and all of compare.trained: {listed(wanted)}; prompted may stand "
                "beside them",
            )
        return self


class TrainParams(Section):
    """`train`: what P-DPO minimises, and where it starts. How it is minimised: see `optimizer`."""

    alpha: float = Field(ge=0, le=1)
    """Weight of the personalised term; 1 - alpha is the generic user's. 0 trains the generic user
    only."""
    beta: float = Field(gt=0)
    """Inverse temperature of the implicit reward (per nat)."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"]
    """Loss of a preference. `robust` needs `label_smoothing` > 0 to differ from `sigmoid`."""
    label_smoothing: float = Field(ge=0, lt=0.5)
    """Assumed share of flipped labels (`sigmoid` and `robust`)."""
    nll_coef: float = Field(ge=0)
    """Coefficient of the chosen response's NLL per token: fluency. NLL is its negative log-
    likelihood."""
    dpop_coef: float = Field(ge=0)
    """Penalty coefficient for chosen responses below the reference. These are less probable than
    under the reference model (DPO-Positive)."""
    trust_pairs: int | None = Field(ge=1)
    """Validation pairs, at most, that decide whether users may differ. After training, users stay
    as they are, move half-way to the generic user, or are that user, whichever the mean user's
    pairs are predicted best by. As many pairs of each user; null for no such check."""
    start_from: str = Field(min_length=1)
    """Where training starts: models/base, or a trained model's directory. It must be outside
    `models/`, which the stages write, and may hold several models, each under its method's name.
    Users are matched by id; the reference stays the base model. See [models](models.md)."""


class LoraParams(Section):
    """`lora`: the low-rank adapter on the frozen base model."""

    r: int = Field(ge=1)
    """Rank."""
    alpha: float = Field(gt=0)
    """Scale; the adapter is multiplied by alpha / r."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: Literal["auto", "all"] | list[str] = Field(min_length=1)
    """Adapted layers: their names, auto (attention projections) or all. `all` is every linear layer
    but the output head."""


class OptimizerParams(Section):
    """`optimizer`: how `train` and `train_reward_model` fit an adapter and a user model."""

    lora: LoraParams
    lora_lr: Annotated[float, at.Gt(0)] | Literal["auto"]
    """Learning rate of the adapter, and of a reward model's head. `auto` is 0.001 at a width of 576
    and falls as 1 / width: 1.4e-4 at 4096."""
    user_lr: float = Field(gt=0)
    """Learning rate of users' embeddings, relative to word embeddings. The unit is the standard
    deviation of the model's word embeddings; an Adam step moves an entry about `user_lr` of it, so
    the value carries over from model to model."""
    weights_lr: float = Field(gt=0)
    """Learning rate of users' weights, the logits of their mixtures. For kind `cluster`."""
    weight_decay: float = Field(ge=0)
    """Weight decay on the adapter (and head)."""
    epochs: float = Field(gt=0)
    """Passes over the training pairs."""
    max_steps: int | None = Field(ge=1)
    """Optimiser steps at most; null for what `epochs` gives."""
    batch_size: Annotated[int, at.Ge(1)] | Literal["auto"]
    """Pairs per optimiser step. `auto` is the largest power of two from 4 to 32 that leaves 100
    steps an epoch, or 4."""
    micro_batch_size: int = Field(ge=1)
    """Pairs per forward pass; must divide `batch_size`. Lower it when memory is short: the gradient
    stays the same. If `batch_size` is `auto`, it is a power of two, and lowered where a process's
    share of the batch is less."""
    user_balance: float = Field(ge=0, le=1)
    """Whose pairs an epoch visits: 0 all alike, 1 as many of every user. A pair of a user with n
    pairs is visited in proportion to n^-user_balance, and an epoch has as many visits as there are
    pairs. Metrics weigh every user alike."""
    term_sampling: bool
    """One of a pair's two terms at a time: half the time, more noise. The personalised term is
    drawn with probability `alpha`, else the generic user's: the same objective on average.
    Validation always computes both."""
    length_bucketing: bool
    """Pairs of similar length together: less padding, another order. The order is as random from
    epoch to epoch. It saves 10 to 25 % of the computation where lengths vary by 40 %; nothing at a
    `micro_batch_size` of 1."""
    warmup_ratio: float = Field(ge=0, lt=1)
    """Share of the steps in which the learning rates rise from 0."""
    schedule: Literal["constant", "linear", "cosine"]
    """Learning rates after the warm-up."""
    max_grad_norm: float = Field(gt=0)
    """Gradients are clipped to this norm."""
    eval_every: float = Field(gt=0, le=1)
    """Share of the steps between two validations. There is always one at the end."""
    eval_pairs: int | None = Field(ge=1)
    """Validation pairs looked at each time, at most; null for all. A fixed sample, of every user as
    many as there are or alike; at most half as many as are trained on between two validations, so
    that validation takes little of the time."""
    keep: Literal["best", "last"]
    """Weights kept at the end. `best` are those of the validation with the lowest loss."""
    patience: int | None = Field(ge=1)
    """Validations without a lower loss that end training; null for none."""
    checkpoint_every: float = Field(gt=0, le=1)
    """Share of the steps between checkpoints, where a killed run resumes. They are at most
    500 steps and half a minute apart (longer where writing one would take more than a tenth of the
    time), and there is one at each validation, too."""
    attention: Literal["auto", "sdpa", "flex"]
    """How attention is computed. The results are the same but for rounding. `flex` skips what the
    packing of several responses behind one prompt leaves empty, and needs a GPU; `auto` is `flex`
    on a GPU, where the model has it, and `sdpa` elsewhere."""
    compile: bool
    """Whether to use torch.compile: slow first steps, faster ones after. Mostly for GPUs; needs a
    C++ compiler."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time. About a third more."""

    @model_validator(mode="after")
    def _batch_is_whole(self) -> Self:
        if self.batch_size == "auto":
            if self.micro_batch_size.bit_count() != 1:
                raise conflict(
                    "micro_batch_size",
                    f"must be a power of two, as batch_size: auto is, not {self.micro_batch_size}",
                )
        elif self.batch_size % self.micro_batch_size:
            raise conflict(
                "micro_batch_size",
                f"must divide batch_size ({self.batch_size}), not {self.micro_batch_size}",
            )
        return self


class RewardTrainParams(Section):
    """`train_reward_model`: the personalised reward model r(x, y, u)."""

    pairs: Literal["train", "held_out"]
    """What it learns from. `train`: the pairs that the methods are trained on; `held_out`: what
    they are not trained on, so that it may judge them: the users' validation pairs, and those of
    held-out users about all but test prompts. It then starts from an untrained user model."""
    alpha: float = Field(ge=0, le=1)
    """Weight of the personalised term, as `train.alpha` is."""


class LaunchParams(Section):
    """`launch`: processes that share a stage's work. They change results by rounding only.

    The stages `reference`, `train`, `train_reward_model`, `generate`, `score` and `score_rewards`
    share theirs. None depends on this section, so a change re-runs nothing.
    """

    processes: int = Field(ge=1)
    """Processes on each machine: one for each of its GPUs."""
    machines: int = Field(ge=1)
    """Machines that share the work. More than one need a project directory that all of them see,
    `MASTER_ADDR` and `NODE_RANK` in their environment, and `prlhf join` on all but the first; see
    [distributed](distributed.md)."""
    strategy: Literal["ddp", "fsdp"]
    """How the model is divided. `ddp`: every process holds the whole base model. `fsdp`: each holds
    a part of every layer, for models that do not fit one GPU; slower."""


class TrackParams(Section):
    """`track`: experiment trackers that training reports to as it runs.

    The stages `train` and `train_reward_model` send settings and curves, never users' ids or texts.
    No stage depends on this section, so a change re-runs nothing.
    """

    report_to: list[Literal["tensorboard", "wandb", "mlflow", "dvclive"]]
    """Trackers, by name; [] for none. Each is a package of its own, to be installed with `pip
    install`. What they keep on disk is in `.cache/trackers/`."""
    project: str = Field(min_length=1)
    """Name of the project (`wandb`) or experiment (`mlflow`)."""

    @model_validator(mode="after")
    def _trackers_are_distinct(self) -> Self:
        require_distinct("report_to", self.report_to)
        return self
