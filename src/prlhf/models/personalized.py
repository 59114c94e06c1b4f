"""The personalised language model: a user model in front of a (LoRA-adapted) causal LM."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any, Final, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from prlhf.infra import distributed
from prlhf.infra.kept import KeptWork
from prlhf.infra.progress import Progress, say
from prlhf.models.base import BaseModel, Encoder, load_base, require_positions
from prlhf.models.logps import check_head, softcap_of, sum_by_owner, token_logps
from prlhf.models.lora import load_adapters, save_adapters
from prlhf.models.packing import (
    MAX_POSITIONS,
    MAX_ROWS,
    Packed,
    Row,
    batches_by_length,
    bounded,
    hidden_states,
    pack,
    takes_tree_mask,
)
from prlhf.models.scores import KeptScores, Scores, SomeScores
from prlhf.models.user_model import (
    FORMAT,
    UniformUserModel,
    UserModel,
    load_user_model,
    read_card,
    save_user_model,
)

Prompt = str | list[dict[str, str]]

LIMITS: Final = ("max_prompt", "max_response", "max_user_text")
"""What the card records of the encoder: its arguments besides the tokenizer."""

CHUNK: Final = 2**12
"""Rows that are encoded at the same time to be scored."""


class PersonalizedLM(nn.Module):
    """pi_P(y | x, u): the language model reads `[f_P(u) ; emb(x)]` (paper, section 4.1).

    `f_P(u)` is `f_implicit(u_id)`, the user model's tokens, followed by `f_explicit(u_text)`, the
    language model's own embeddings of the user's text, if the encoder reads it.

    Args:
        base: the frozen base model, its tokenizer and origin.
        lm: the base model itself, or PEFT's wrapper around it.
        user_model: user indices to soft-prompt embeddings.
        encoder: prompts and responses to tokens.
        about: what else the model's card records (method, objective, ...).

    Raises:
        UserError: the architecture is not supported, or has too few positions for the longest text.
    """

    def __init__(
        self,
        base: BaseModel,
        lm: PreTrainedModel | PeftModel,
        user_model: UserModel,
        encoder: Encoder,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.user_model = user_model.to(base.device)
        self.base = base
        self.encoder = encoder
        self.about = about or {}
        check_head(self.causal_lm)
        longest = self.user_model.tokens + encoder.longest
        what = "a user's tokens and text, a prompt and a response"
        fix = "lower tokens.max_prompt or tokens.max_response"
        require_positions(self.causal_lm, longest, what, fix=fix)
        self.shares_prompts = takes_tree_mask(self.causal_lm, longest)
        if not self.shares_prompts:
            say("this architecture takes no tree mask: prompts are computed once per response")

    @classmethod
    def reference(
        cls, base: BaseModel, encoder: Encoder, about: dict[str, Any] | None = None
    ) -> PersonalizedLM:
        """The base model itself, as a personalised model without user tokens: pi_ref."""
        return cls(base, base.model, UniformUserModel([], 0, base.hidden_size), encoder, about)

    # -- forward ---------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The causal language model under PEFT's wrapper, adapters included."""
        model = self.lm.get_base_model() if isinstance(self.lm, PeftModel) else self.lm
        return cast(PreTrainedModel, model)

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def personalized(self) -> bool:
        """Whether answers depend on the user: on who they are, or on their text."""
        return self.user_model.tells_apart or self.encoder.reads_text

    def by_adapter(self, users: Sequence[int]) -> Iterator[list[int]]:
        """For each adapter in use: the positions of its users, while that adapter is active."""
        names = self.user_model.adapters
        if len(names) == 1:
            yield list(range(len(users)))
            return
        served: dict[str, list[int]] = {name: [] for name in names}
        for position, user in enumerate(users):
            served[self.user_model.adapter(user)].append(position)
        for name, positions in served.items():
            if positions:
                cast(PeftModel, self.lm).set_adapter(name, inference_mode=True)
                yield positions

    def pack(self, rows: Sequence[Row]) -> Packed:
        """Rows as one batch; a row's responses share the prompt if the model can do that."""
        if not self.shares_prompts:
            rows = [part for row in rows for part in row.split()]
        return pack(rows, self.user_model.tokens)

    def forward(
        self, batch: Packed, *, features: bool = False, users: Tensor | None = None
    ) -> Scores:
        """Log-probabilities of every response of the batch, in row order.

        Args:
            batch: rows packed by `pack`, on this model's device, all for the active adapter.
            features: also return each response's mean hidden state, and its last token's
                log-probability.
            users: also return the regularisers of these users, int64 [U].
        """
        hidden, model = self.hidden(batch), self.causal_lm
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.predictors)
        head = cast(nn.Module, model.get_output_embeddings())
        per_token = token_logps(states, head, batch.targets, softcap=softcap_of(model))
        responses = len(batch.tokens)
        pooled = last = None
        if features:
            last = per_token[batch.tokens.cumsum(0) - 1]
            sums = sum_by_owner(states.float(), batch.owners, responses)
            pooled = sums / batch.tokens.unsqueeze(1)
        return Scores(
            sum_by_owner(per_token, batch.owners, responses),
            batch.tokens,
            pooled,
            None if users is None else self.user_model.penalty(users),
            last,
        )

    def hidden(self, batch: Packed) -> Tensor:
        """Last hidden states [B, L, d]."""
        embeds = self.causal_lm.get_input_embeddings()(batch.input_ids)
        if self.user_model.tokens:
            users = self.user_model(batch.user_index).to(embeds.dtype)
            embeds = torch.cat([users, embeds[:, self.user_model.tokens :]], dim=1)
        return hidden_states(self.causal_lm, embeds, batch)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.causal_lm.activation_checkpointing_enable(**options)

    def score(
        self,
        rows: Iterable[Row],
        *,
        label: str,
        total: int | None = None,
        features: bool = False,
        max_rows: int = MAX_ROWS,
        max_positions: int = MAX_POSITIONS,
        work: KeptWork | None = None,
    ) -> Scores:
        """`forward` over any number of rows, batched by length; results on the CPU, in order.

        Several processes divide the batches among themselves; see `collect` for what each has.

        Args:
            rows: prompts and responses, in any order. They are taken `CHUNK` at a time: an iterator
                encodes them when it is their turn.
            label: shown with the progress.
            total: how many rows there are; None if `rows` has a length.
            features: also return each response's mean hidden state, and its last token's
                log-probability.
            max_rows, max_positions: see `prlhf.models.packing.batches_by_length`.
            work: of this run and these rows alone, where results are kept as they come, and those
                of a killed run are found. None for none.
        """
        limits = {"max_rows": max_rows, "max_positions": max_positions}
        waiting = iter(rows)
        kept, first = KeptScores(work), 0
        if kept.found:
            say(f"{label}: {kept.found} responses are known from a run that was stopped")
        done: list[Scores] = []
        with Progress(length_hint(rows) if total is None else total, label, "rows") as progress:
            # Nothing at all has results, too: empty ones.
            while (chunk := list(itertools.islice(waiting, CHUNK))) or not done:
                responses = sum(len(row.responses) for row in chunk)
                left = kept.left(first, first + responses)
                known = distributed.broadcast(frozenset(left.where.tolist()))
                batches = self.batches(chunk, progress, known, **limits)
                keep = partial(kept.add, first=first)
                done.append(
                    self.collect(batches, responses, features=features, left=left, keep=keep)
                )
                first += responses
        return Scores.join(done)

    @torch.no_grad()
    def collect(
        self,
        batches: Iterable[tuple[Packed, Tensor, bool]],
        responses: int,
        *,
        features: bool,
        left: SomeScores | None = None,
        keep: Callable[[SomeScores], None] | None = None,
    ) -> Scores:
        """`forward` over the batches that `batches` or `deal` hands out; results on the CPU.

        Every process has all results, but only the main one has the features, which are large.

        Args:
            batches: what this process is to compute.
            responses: how many there are in the batches of all processes.
            features: as for `score`.
            left: results that are in none of the batches; in the main process only.
            keep: called with the results of each batch of this process.
        """
        self.eval()
        logps = torch.zeros(responses)
        tokens = torch.zeros(responses, dtype=torch.long)
        last = torch.zeros(responses) if features else None
        width = self.base.hidden_size
        pooled = torch.zeros(responses, width, dtype=torch.float16) if features else None
        whole = Scores(logps, tokens, pooled, last=last)
        if left is not None:
            whole.put(left)
        for batch, where, own in batches:
            scores = self(batch, features=features)
            if not own:
                continue
            part = SomeScores(where, scores.collected())
            whole.put(part)
            if keep is not None:
                keep(part)
        distributed.all_reduce_sum_(logps, tokens, last)
        if pooled is not None and not distributed.sum_to_main_(pooled):
            return replace(whole, features=None)
        return whole

    def batches(
        self,
        rows: Sequence[Row],
        progress: Progress,
        known: Collection[int] = (),
        *,
        max_rows: int,
        max_positions: int,
    ) -> Iterator[tuple[Packed, Tensor, bool]]:
        """Pack any number of rows into batches of similar length, and deal them out.

        While a batch is out, the adapter of its users is active.

        Args:
            rows: prompts and responses, in any order.
            progress: counts the rows.
            known: see `deal`.
            max_rows, max_positions: see `prlhf.models.packing.batches_by_length`.

        Yields:
            As `deal` does.
        """
        parts = bounded(rows)
        progress.expect(len(parts) - len(rows))
        lengths = [row.length(self.user_model.tokens) for row in parts]
        for served in self.by_adapter([row.user_index for row in parts]):
            batches = batches_by_length(
                [lengths[i] for i in served], max_rows=max_rows, max_positions=max_positions
            )
            dealt = [[served[i] for i in each] for each in batches]
            yield from self.deal(parts, dealt, progress, known)

    def deal(
        self,
        rows: Sequence[Row],
        batches: Sequence[list[int]],
        progress: Progress,
        known: Collection[int] = (),
    ) -> Iterator[tuple[Packed, Tensor, bool]]:
        """Divide batches of rows for the active adapter among the processes.

        Args:
            rows: prompts and responses.
            batches: the rows of each batch.
            progress: counts the rows.
            known: places of responses that need no computing; whole batches.

        Yields:
            A batch on this model's device, the places of its responses among those of all rows,
            int64, and whether its results count (see `prlhf.infra.distributed.Turn`).
        """
        starts = list(itertools.accumulate((len(row.responses) for row in rows), initial=0))
        missing = [each for each in batches if starts[each[0]] not in known]
        progress.expect(sum(map(len, missing)) - sum(map(len, batches)))
        for turn in distributed.turns(missing):
            where = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in turn.rows])
            packed = self.pack([rows[i] for i in turn.rows]).to(self.device)
            yield packed, where, turn.own
            progress.advance(turn.together)

    def prefix(self, user_index: int, prompt: Sequence[int]) -> Tensor:
        """Input embeddings `[f_P(u) ; emb(x)]` of one encoded prompt, [T + len(prompt), d]."""
        ids = torch.tensor(prompt, device=self.device)
        embeds = self.causal_lm.get_input_embeddings()(ids)
        users = self.user_model(torch.tensor([user_index], device=self.device))[0]
        return torch.cat([users.to(embeds.dtype), embeds])

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(self, directory: Path) -> None:
        """Write adapter, user model and card to an existing directory.

        The adapter has PEFT's own format, so `peft.PeftModel.from_pretrained` loads it as well;
        adapters of groups are in subdirectories (`group_0`, ...). The card names the base model
        by its path relative to `directory`.
        """
        if isinstance(self.lm, PeftModel):
            save_adapters(self.lm, directory)
        base = Path(os.path.relpath(self.base.path, directory)).as_posix()
        about = {
            "format": FORMAT,
            "base": {"path": base, **self.base.source},
            "tokens": {limit: getattr(self.encoder, limit) for limit in LIMITS},
            **self.about,
        }
        save_user_model(self.user_model, directory, about)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, base: str | Path | None = None, dtype: str = "auto"
    ) -> PersonalizedLM:
        """Load a model directory written by `save_pretrained`, ready to generate.

        Args:
            directory: for example `models/pdpo`.
            base: directory of the base model, if it is not where the card says.
            dtype: of the base model's weights; see `model.dtype` in `params.yaml`.

        Raises:
            UserError: something is missing or was written by a newer version.
        """
        directory = Path(directory)
        card = read_card(directory)
        base_path = Path(base) if base else Path(os.path.normpath(directory / card["base"]["path"]))
        loaded = load_base(base_path, dtype)
        user_model = load_user_model(directory)
        lm = load_adapters(loaded.model, directory, user_model.adapters)
        encoder = Encoder(loaded.chat, **card["tokens"])
        known = {"format", "base", "tokens", "users", "user_model"}
        about = {key: value for key, value in card.items() if key not in known}
        model = cls(loaded, lm, user_model, encoder, about)
        model.requires_grad_(False)
        return model.eval()
