"""The models, the methods, how they are trained, and on how many processes."""

from typing import Annotated, Literal, Self

import annotated_types as at
from pydantic import Field, model_validator

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


class UserModelParams(Section):
    """`user_model`: the embeddings that stand for a user in front of the prompt."""

    tokens: int = Field(ge=1)
    """User tokens T_u: embeddings per user."""
    clusters: Annotated[int, at.Ge(1)] | Literal["auto"]
    """Preference clusters K; auto chooses K on validation data. For kind `cluster` and the
    pretraining."""
    max_clusters: int = Field(ge=1)
    """The largest K that `auto` tries."""
    init_scale: float = Field(ge=0)
    """First group offsets, in standard deviations of the word embeddings."""
    generic_pull: float = Field(ge=0)
    """`cluster`: pull of the generic user's weights to the population mean."""
    offset_penalty: float = Field(ge=0)
    """`individual`: L2 penalty on the users' offsets."""


class PretrainParams(Section):
    """`pretrain`: learn who the users are before the language model is tuned."""

    method: Literal["reward", "soft_prompt", "none"]
    """`reward`: a low-rank personalised reward model on the reference features (seconds).
    `soft_prompt`: P-DPO on the user model alone, with the language model frozen (minutes on a CPU).
    `none`: start from the generic user."""
    alpha: float = Field(ge=0, le=1)
    """Weight of the personalised term while pretraining."""
    rank: int = Field(ge=1)
    """`reward`: dimensions that the features are projected to."""
    steps: int = Field(ge=1)
    """`reward`: optimiser steps, each on all pairs."""
    lr: float = Field(gt=0)
    """`reward`: learning rate."""
    l2: float = Field(ge=0)
    """`reward`: L2 penalty on the weights."""
    soft_prompt_steps: int = Field(ge=1)
    """`soft_prompt`: optimiser steps."""
    soft_prompt_lr: float = Field(gt=0)
    """`soft_prompt`: learning rate."""
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
    """`train`: what P-DPO minimises. How it is minimised is in `optimizer`."""

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
    lora_lr: float = Field(gt=0)
    """Learning rate of the adapter, and of a reward model's head."""
    user_lr: float = Field(gt=0)
    """Learning rate of the user model."""
    weight_decay: float = Field(ge=0)
    """Weight decay on the adapter (and head)."""
    epochs: float = Field(gt=0)
    """Passes over the training pairs."""
    max_steps: int | None = Field(ge=1)
    """Optimiser steps at most; null for what `epochs` gives."""
    batch_size: int = Field(ge=1)
    """Pairs per optimiser step."""
    micro_batch_size: int = Field(ge=1)
    """Pairs per forward pass; must divide `batch_size`. Lower it when memory is short: the gradient
    stays the same."""
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
    eval_every: int = Field(ge=1)
    """Steps between two validations."""
    eval_pairs: int = Field(ge=1)
    """Validation pairs looked at each time (a fixed sample)."""
    checkpoint_every: int = Field(ge=1)
    """Steps between two checkpoints; a killed run resumes from the last."""
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
        if self.batch_size % self.micro_batch_size:
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
