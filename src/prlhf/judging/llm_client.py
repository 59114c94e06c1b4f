"""Questions to a language model over the network: cached, counted, within a budget.

Retries with back-off are the OpenAI client's own: after 408, 409, 429, 5xx, time-outs and broken
connections it waits as long as the server asks (up to two minutes), or 0.5 s doubling up to 8 s,
less a random part.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prlhf.data.ids import content_hash
from prlhf.infra import signals
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_json
from prlhf.infra.progress import Progress, say
from prlhf.params import LlmJudgeParams

if TYPE_CHECKING:
    import openai

CACHE = Path(".cache/judge")
"""Not a DVC output: DVC would delete it before the stage runs."""

CHARS_PER_TOKEN = 4
"""An estimate, for servers that do not count tokens."""

KEPT = "what was paid for is kept in .cache/judge, run again to go on from there"

Message = dict[str, str]
"""`role` and `content`."""

T = TypeVar("T")


def settings(params: LlmJudgeParams) -> dict[str, Any]:
    """What is sent with each question, besides the messages."""
    sent = {"temperature": params.temperature, "max_tokens": params.max_tokens}
    return {name: value for name, value in sent.items() if value is not None}


def question_key(params: LlmJudgeParams, messages: Sequence[Message]) -> str:
    """A hash of everything that the answer to a question depends on."""
    asked = json.dumps([settings(params), list(messages)], sort_keys=True)
    return content_hash(params.base_url, str(params.model), asked)


@dataclass(frozen=True)
class Reply:
    """One answer of the server.

    Attributes:
        text: What the model said; empty if nothing.
        input_tokens, output_tokens: As counted by the server, or estimated where it does not count.
    """

    text: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Cache:
    """Replies by the key of their question, one file each, written as soon as they arrive."""

    root: Path = CACHE

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    def get(self, key: str) -> Reply | None:
        path = self.path(key)
        return Reply(**read_json(path)) if path.exists() else None

    def put(self, key: str, reply: Reply) -> None:
        write_json(self.path(key), asdict(reply))


@dataclass
class Usage:
    """What the answers in use have cost, in this run or in an earlier one."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, reply: Reply) -> None:
        self.requests += 1
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens

    def cost(self, params: LlmJudgeParams) -> float:
        """In the currency of the prices."""
        paid = self.input_tokens * params.price_input + self.output_tokens * params.price_output
        return paid / 1e6


@dataclass
class Conversation(Generic[T]):
    """A question, and the judge's attempts to answer it.

    Attributes:
        messages: The question; an unreadable reply is added, with a request to answer as asked.
        answer: None until a reply could be read.
        asked, most: Replies so far, and at most.
    """

    messages: list[Message]
    answer: T | None = None
    asked: int = 0
    most: int = 1

    @property
    def done(self) -> bool:
        return self.answer is not None or self.asked >= self.most


@dataclass
class Client(Generic[T]):
    """Asks questions; equal ones are asked only once.

    Attributes:
        params: `judge.llm.*` of `params.yaml`.
        read: Returns the answer in a reply, or None if it cannot be read.
        correction: The request after a reply that cannot be read.
        cache: Keeps replies from one run to the next.
        usage: Of all questions so far.
    """

    params: LlmJudgeParams
    read: Callable[[str], T | None]
    correction: str
    cache: Cache = field(default_factory=Cache)
    usage: Usage = field(default_factory=Usage)
    _known: dict[str, Conversation[T]] = field(default_factory=dict)
    _stopped: bool = False
    _on_their_way: int = 0

    def ask(self, questions: Sequence[list[Message]], label: str) -> list[T | None]:
        """The answer to each question; None if no reply could be read.

        Args:
            questions: Conversations that end with a question.
            label: Shown with the progress.

        Raises:
            UserError: The package or the key is missing; the server cannot be reached, refuses, or
                keeps failing; or the budget is used up. Replies received so far are kept.
        """
        keys = [question_key(self.params, messages) for messages in questions]
        for key, messages in zip(keys, questions, strict=True):
            if key not in self._known:
                conversation = Conversation[T](list(messages), most=1 + self.params.reask)
                self._known[key] = conversation
                while not conversation.done:
                    kept = self.cache.get(question_key(self.params, conversation.messages))
                    if kept is None:
                        break
                    self._take(conversation, kept)
        waiting = [one for one in self._known.values() if not one.done]
        if waiting:
            self._check_size(len(waiting))
            paid = self.usage.cost(self.params)
            before = self.usage.requests
            try:
                signals.run(self._ask(waiting, label))
            finally:
                now, cost = self.usage.requests - before, self.usage.cost(self.params) - paid
                say(f"{label}: {now} answers of {self.params.model}, cost {cost:.4g}")
        return [self._known[key].answer for key in keys]

    @property
    def unreadable(self) -> int:
        """Distinct questions that got no readable reply."""
        return sum(one.done and one.answer is None for one in self._known.values())

    def _take(self, conversation: Conversation[T], reply: Reply) -> None:
        self.usage.add(reply)
        conversation.asked += 1
        conversation.answer = self.read(reply.text)
        if conversation.answer is None:
            conversation.messages += [
                {"role": "assistant", "content": reply.text or "(nothing)"},
                {"role": "user", "content": self.correction},
            ]

    async def _ask(self, waiting: Sequence[Conversation[T]], label: str) -> None:
        server = connect(self.params)
        queue = iter(waiting)
        self._stopped = False
        with Progress(len(waiting), label, "questions") as progress:
            async with server:
                workers = [
                    self._work(server, queue, progress)
                    for _ in range(min(self.params.concurrency, len(waiting)))
                ]
                # Wait for all: requests still on their way when one fails are paid for, too.
                ends = await asyncio.gather(*workers, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _work(
        self, server: openai.AsyncOpenAI, queue: Iterator[Conversation[T]], progress: Progress
    ) -> None:
        try:
            for conversation in queue:
                while not conversation.done and not self._stopped:
                    self._check_budget()
                    self._on_their_way += 1
                    try:
                        reply = await request(server, self.params, conversation.messages)
                    finally:
                        self._on_their_way -= 1
                    self.cache.put(question_key(self.params, conversation.messages), reply)
                    self._take(conversation, reply)
                if self._stopped:
                    return
                progress.advance(cost=self.usage.cost(self.params))
        except BaseException:
            self._stopped = True
            raise

    def _check_size(self, waiting: int) -> None:
        limit = self.params.max_requests
        if limit is not None and self.usage.requests + waiting > limit:
            raise UserError(
                f"{self.usage.requests + waiting} requests are needed, {self.usage.requests} of "
                f"them answered earlier, and {limit} are allowed; none was sent",
                where="params.yaml: judge.llm.max_requests",
                fix="raise it, or lower generate.prompts, generate.users, judge.unseen_users or "
                "judge.llm.choices",
            )

    def _check_budget(self) -> None:
        requests, cost = self.usage.requests, self.usage.cost(self.params)
        limits = (
            ("max_requests", self.params.max_requests, requests + self._on_their_way),
            ("max_cost", self.params.max_cost, cost),
        )
        for name, limit, used in limits:
            if limit is not None and used >= limit:
                raise UserError(
                    f"the budget is used up: {requests} requests, cost {cost:.4g}",
                    where=f"params.yaml: judge.llm.{name}",
                    fix=f"raise it; {KEPT}",
                )


def connect(params: LlmJudgeParams) -> openai.AsyncOpenAI:
    """A client of the server.

    Raises:
        UserError: The package `openai` or the API key is missing.
    """
    try:
        import openai
    except ImportError:
        raise UserError(
            "a language model as judge needs the package openai",
            where="params.yaml: judge.kind",
            fix="pip install 'prlhf[judge]'",
        ) from None
    key = os.environ.get(params.api_key_env, "") if params.api_key_env else "none"
    if not key.strip():
        raise UserError(
            f"the environment variable {params.api_key_env} is not set",
            where="params.yaml: judge.llm.api_key_env",
            fix="export it with the API key, or name none (null) for a server that wants none",
        )
    return openai.AsyncOpenAI(
        base_url=params.base_url,
        api_key=key.strip(),
        timeout=params.timeout,
        max_retries=params.retries,
    )


async def request(
    server: openai.AsyncOpenAI, params: LlmJudgeParams, messages: Sequence[Message]
) -> Reply:
    """One reply of the server, after up to `retries` more attempts.

    Raises:
        UserError: All attempts failed.
    """
    import openai

    try:
        completion: Any = await server.chat.completions.create(
            model=str(params.model),
            messages=list(messages),  # type: ignore[arg-type]
            **settings(params),
        )
        choice = completion.choices[0]
        text = str(choice.message.content or "")
        if (usage := completion.usage) is not None:
            return Reply(text, int(usage.prompt_tokens), int(usage.completion_tokens))
        asked = sum(len(message["content"]) for message in messages)
        return Reply(text, asked // CHARS_PER_TOKEN, len(text) // CHARS_PER_TOKEN)
    except openai.APITimeoutError:
        attempts = params.retries + 1
        raise UserError(
            f"{params.base_url} gave no answer within {params.timeout:g} s, {attempts} times",
            where="params.yaml: judge.llm.timeout",
            fix=f"raise it, or lower judge.llm.concurrency; {KEPT}",
        ) from None
    except openai.APIConnectionError as error:
        reason = error.__cause__ or error
        raise UserError(
            f"{params.base_url} cannot be reached: {str(reason) or type(reason).__name__}",
            where="params.yaml: judge.llm.base_url",
            fix=f"check address and network; {KEPT}",
        ) from None
    except openai.APIStatusError as error:
        raise _refused(error, params) from None
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError):
        raise UserError(
            f"what {params.base_url} answers is no chat completion",
            where="params.yaml: judge.llm.base_url",
            fix="the address of most servers ends with /v1",
        ) from None


def _refused(error: openai.APIStatusError, params: LlmJudgeParams) -> UserError:
    """The error for an answer with an error status, and what to change."""
    status = error.status_code
    unknown = "not all models take judge.llm.temperature and max_tokens: set them to null"
    where, fix = {
        400: ("model", unknown),
        401: ("api_key_env", f"check the key in {params.api_key_env}"),
        403: ("api_key_env", f"check what the key in {params.api_key_env} may do"),
        404: ("model", "check judge.llm.model and judge.llm.base_url"),
        429: ("concurrency", f"lower it, or wait; {KEPT}"),
    }.get(status, ("base_url", KEPT))
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    said = " ".join((message if isinstance(message, str) else error.message).split())
    said = f"{said[:200]}..." if len(said) > 200 else said
    return UserError(
        f"{params.base_url} refuses the request for {params.model} ({status}): {said}",
        where=f"params.yaml: judge.llm.{where}",
        fix=fix,
    )
