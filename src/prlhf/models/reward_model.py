"""The personalised reward model: a scalar head on the personalised language model.

    r(x, y, u) = v . h(u, x, y)

where `h` is the last hidden state of `[ f_P(u) ; emb(x) ; emb(y) ]` at the last token of `y`, its
end-of-sequence token unless it was cut: the one position that has read the whole response. The base
model is frozen; the LoRA adapter, the user model and the head `v` are trained (paper, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prlhf import distributed
from prlhf.data.contract import canonical_prompt
from prlhf.errors import UserError
from prlhf.models.packing import Packed, Row
from prlhf.models.personalized import PersonalizedLM, Prompt
from prlhf.models.user_model import UserModel

HEAD = "reward_head.safetensors"


@dataclass(frozen=True)
class Rewards:
    """What a forward pass tells about R responses.

    Attributes:
        rewards: r of each response, float32 [R]; only differences under one prompt and user mean
            anything.
        penalty: the user model's regulariser of each of the users asked for, or None.
    """

    rewards: Tensor
    penalty: Tensor | None


class PersonalizedRewardModel(nn.Module):
    """r(x, y, u): what a user thinks of a response.

    The head has no bias, which no difference could tell, and starts at zero: indifferent.

    Args:
        lm: the personalised language model whose hidden states the head reads.
    """

    def __init__(self, lm: PersonalizedLM) -> None:
        super().__init__()
        self.lm = lm
        self.head = nn.Linear(lm.base.hidden_size, 1, bias=False, device=lm.device)
        nn.init.zeros_(self.head.weight)

    @property
    def user_model(self) -> UserModel:
        return self.lm.user_model

    @property
    def device(self) -> torch.device:
        return self.lm.device

    # -- forward ---------------------------------------------------------------------------------

    def pack(self, rows: Sequence[Row]) -> Packed:
        """Rows as one batch, prompts shared between a row's responses where the model can."""
        return self.lm.pack([self._read_whole(row) for row in rows])

    def _read_whole(self, row: Row) -> Row:
        """Responses with one more token: packing leaves the last one of each unread."""
        eos = self.lm.encoder.eos
        return replace(row, responses=[[*response, eos] for response in row.responses])

    def forward(self, batch: Packed, *, users: Tensor | None = None) -> Rewards:
        """Rewards of every response of the batch, in row order.

        Args:
            batch: rows packed by `pack`, on this model's device.
            users: also return the regularisers of these users, int64 [U].
        """
        hidden = self.lm.hidden(batch)
        last = batch.predictors[batch.tokens.cumsum(0) - 1]
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, last)
        rewards = self.head(states.to(self.head.weight.dtype)).squeeze(-1)
        return Rewards(rewards, None if users is None else self.user_model.penalty(users))

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Keep few activations and compute the others again in the backward pass."""
        self.lm.activation_checkpointing_enable(**options)

    @torch.no_grad()
    def score(
        self, rows: Sequence[Row], *, label: str, max_rows: int = 16, max_positions: int = 2048
    ) -> Tensor:
        """Rewards of any number of rows, batched by length: float32 [R] on the CPU, in order.

        Several processes share the batches out, and each has all results.
        """
        self.eval()
        rewards = torch.zeros(sum(len(row.responses) for row in rows))
        whole = [self._read_whole(row) for row in rows]
        limits = {"max_rows": max_rows, "max_positions": max_positions}
        for batch, where, own in self.lm.batches(whole, label=label, **limits):
            part = self(batch)
            if own:
                rewards[where] = part.rewards.float().cpu()
        distributed.put_together(rewards)
        return rewards

    # -- use -------------------------------------------------------------------------------------

    def reward(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        users: Sequence[str | None],
        texts: Sequence[str | None] | None = None,
        *,
        label: str = "reward",
    ) -> list[float]:
        """What the user of each position thinks of the response to the prompt there.

        Users are named by your own ids; an id that was not trained on, or None, is the generic
        user. Only differences between responses to one prompt, for one user, mean anything: the
        user prefers the one with the higher reward with odds `exp(difference)`. Responses to the
        same prompt for the same user are computed together. `texts` is what each user says of
        themselves, for models that read it (`text: true`).

        Raises:
            UserError: the lists differ in length, or there are texts for a model that reads none.
        """
        if not len(prompts) == len(responses) == len(users):
            raise UserError(
                f"{len(prompts)} prompts, {len(responses)} responses and {len(users)} users",
                fix="give one each",
            )
        encoder = self.lm.encoder
        positions: dict[tuple[int, str, str | None], list[int]] = {}
        read = encoder.given_texts(texts, len(prompts))
        for i, (prompt, user, text) in enumerate(zip(prompts, users, read, strict=True)):
            key = self.user_model.index(user), canonical_prompt(prompt), text
            positions.setdefault(key, []).append(i)
        rows = [
            Row(
                user,
                encoder.prompt(prompt, text),
                [encoder.response(responses[i]) for i in members],
            )
            for (user, prompt, text), members in positions.items()
        ]
        rewards = [0.0] * len(prompts)
        order = (i for members in positions.values() for i in members)
        for i, value in zip(order, self.score(rows, label=label).tolist(), strict=True):
            rewards[i] = value
        return rewards

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(self, directory: Path) -> None:
        """Write adapter, user model, card (as `PersonalizedLM` does) and head to a directory."""
        self.lm.save_pretrained(directory)
        weight = self.head.weight.detach().cpu().contiguous()
        save_file({"weight": weight}, str(directory / HEAD), metadata={"format": "pt"})

    def load_head(self, directory: Path) -> None:
        """Load the head that `save_pretrained` wrote.

        Raises:
            UserError: there is none.
        """
        if not (directory / HEAD).is_file():
            raise UserError(
                "holds no reward model", where=directory, fix="name one that prlhf trained"
            )
        self.head.load_state_dict(load_file(str(directory / HEAD)))

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, base: str | Path | None = None, dtype: str = "auto"
    ) -> PersonalizedRewardModel:
        """Load a directory written by `save_pretrained`, ready to judge.

        Args:
            directory, base, dtype: as for `PersonalizedLM.from_pretrained`.

        Raises:
            UserError: something is missing or was made by a newer version.
        """
        model = cls(PersonalizedLM.from_pretrained(directory, base=base, dtype=dtype))
        model.load_head(Path(directory))
        model.requires_grad_(False)
        return model.eval()
