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

from prlhf import signals
from prlhf.errors import UserError
from prlhf.evaluation.llm_prompts import Message
from prlhf.io import content_hash, read_json, write_json
from prlhf.progress import Progress, say

if TYPE_CHECKING:
    import openai

CACHE = Path(".cache/judge")
"""Outside DVC's outputs, which DVC deletes before a stage runs."""

CHARS_PER_TOKEN = 4
"""For servers that do not count tokens."""

KEPT = "what was paid for is kept in .cache/judge, run again to go on from there"

T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """See `judge.llm.*` in `params.yaml`."""

    base_url: str
    model: str
    api_key_env: str | None
    temperature: float | None
    max_tokens: int | None
    timeout: float
    concurrency: int
    retries: int
    reask: int
    price_input: float
    price_output: float
    max_requests: int | None
    max_cost: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """What is sent with each question."""
        sent = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in sent.items() if value is not None}

    def key(self, messages: Sequence[Message]) -> str:
        """Names a question by all that its answer depends on."""
        asked = json.dumps([self.settings, list(messages)], sort_keys=True)
        return content_hash(self.base_url, self.model, asked)


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


class Cache:
    """Replies by the key of their question, one file each, there as soon as they arrive."""

    def __init__(self, root: Path = CACHE) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    def get(self, key: str) -> Reply | None:
        path = self.path(key)
        return Reply(**read_json(path)) if path.exists() else None

    def put(self, key: str, reply: Reply) -> None:
        write_json(self.path(key), asdict(reply))


@dataclass
class Usage:
    """What the answers in use have cost, whenever they were paid for."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, reply: Reply) -> None:
        self.requests += 1
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens

    def cost(self, endpoint: Endpoint) -> float:
        """In the currency of the prices."""
        paid = self.input_tokens * endpoint.price_input + self.output_tokens * endpoint.price_output
        return paid / 1e6


@dataclass
class Conversation(Generic[T]):
    """A question, and the judge's attempts to answer it.

    Attributes:
        messages: Grow by each unreadable reply and a request to answer as asked.
        answer: The readable one, once there is one.
        asked: Replies so far.
    """

    messages: list[Message]
    answer: T | None = None
    asked: int = 0
    most: int = 1

    @property
    def done(self) -> bool:
        return self.answer is not None or self.asked >= self.most

    def take(self, reply: Reply, read: Callable[[str], T | None], correction: str) -> None:
        self.asked += 1
        self.answer = read(reply.text)
        if self.answer is None:
            self.messages += [
                {"role": "assistant", "content": reply.text or "(nothing)"},
                {"role": "user", "content": correction},
            ]


@dataclass
class Client(Generic[T]):
    """Asks questions, each distinct one once.

    Attributes:
        endpoint: Whom, and how.
        read: Gives the answer in a reply; None where it cannot be read.
        correction: What is said after a reply that cannot be read.
        cache: Keeps replies from one run to the next.
        usage: Of all questions so far.
    """

    endpoint: Endpoint
    read: Callable[[str], T | None]
    correction: str
    cache: Cache = field(default_factory=Cache)
    usage: Usage = field(default_factory=Usage)
    _known: dict[str, Conversation[T]] = field(default_factory=dict)
    _stopped: bool = False
    _on_their_way: int = 0

    def ask(self, questions: Sequence[list[Message]], label: str) -> list[T | None]:
        """The answer to each question; None where no reply could be read.

        Args:
            questions: Conversations that end with a question.
            label: What they are, shown with the progress.

        Raises:
            UserError: The package or the key is missing, the server cannot be reached, refuses, or
                fails for good, or the budget is used up. Replies that came are kept.
        """
        keys = [self.endpoint.key(messages) for messages in questions]
        for key, messages in zip(keys, questions, strict=True):
            if key not in self._known:
                conversation = Conversation[T](list(messages), most=1 + self.endpoint.reask)
                self._known[key] = conversation
                while not conversation.done and (reply := self._kept(conversation)):
                    self._take(conversation, reply)
        waiting = [one for one in self._known.values() if not one.done]
        if waiting:
            self._check_size(len(waiting))
            paid = self.usage.cost(self.endpoint)
            before = self.usage.requests
            try:
                signals.run(self._ask(waiting, label))
            finally:
                now, cost = self.usage.requests - before, self.usage.cost(self.endpoint) - paid
                say(f"{label}: {now} answers of {self.endpoint.model}, cost {cost:.4g}")
        return [self._known[key].answer for key in keys]

    @property
    def unreadable(self) -> int:
        """Distinct questions that got no readable reply."""
        return sum(one.done and one.answer is None for one in self._known.values())

    def _kept(self, conversation: Conversation[T]) -> Reply | None:
        return self.cache.get(self.endpoint.key(conversation.messages))

    def _take(self, conversation: Conversation[T], reply: Reply) -> None:
        self.usage.add(reply)
        conversation.take(reply, self.read, self.correction)

    async def _ask(self, waiting: Sequence[Conversation[T]], label: str) -> None:
        openai_client = connect(self.endpoint)
        queue = iter(waiting)
        self._stopped = False
        with Progress(len(waiting), label, "questions") as progress:
            async with openai_client:
                workers = [
                    self._work(openai_client, queue, progress)
                    for _ in range(min(self.endpoint.concurrency, len(waiting)))
                ]
                # All of them: what is on its way when one fails is paid for, too.
                ends = await asyncio.gather(*workers, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _work(
        self,
        openai_client: openai.AsyncOpenAI,
        queue: Iterator[Conversation[T]],
        progress: Progress,
    ) -> None:
        try:
            for conversation in queue:
                while not conversation.done and not self._stopped:
                    self._check_budget()
                    self._on_their_way += 1
                    try:
                        reply = await request(openai_client, self.endpoint, conversation.messages)
                    finally:
                        self._on_their_way -= 1
                    self.cache.put(self.endpoint.key(conversation.messages), reply)
                    self._take(conversation, reply)
                if self._stopped:
                    return
                progress.advance(cost=self.usage.cost(self.endpoint))
        except BaseException:
            self._stopped = True
            raise

    def _check_size(self, waiting: int) -> None:
        limit = self.endpoint.max_requests
        if limit is not None and self.usage.requests + waiting > limit:
            raise UserError(
                f"{self.usage.requests + waiting} requests are needed, {self.usage.requests} of "
                f"them answered earlier, and {limit} are allowed; none was sent",
                where="params.yaml: judge.llm.max_requests",
                fix="raise it, or lower generate.prompts, generate.users, judge.unseen_users or "
                "judge.llm.choices",
            )

    def _check_budget(self) -> None:
        requests, cost = self.usage.requests, self.usage.cost(self.endpoint)
        limits = (
            ("max_requests", self.endpoint.max_requests, requests + self._on_their_way),
            ("max_cost", self.endpoint.max_cost, cost),
        )
        for name, limit, used in limits:
            if limit is not None and used >= limit:
                raise UserError(
                    f"the budget is used up: {requests} requests, cost {cost:.4g}",
                    where=f"params.yaml: judge.llm.{name}",
                    fix=f"raise it; {KEPT}",
                )


def connect(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client of the endpoint.

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
    key = os.environ.get(endpoint.api_key_env, "") if endpoint.api_key_env else "none"
    if not key.strip():
        raise UserError(
            f"the environment variable {endpoint.api_key_env} is not set",
            where="params.yaml: judge.llm.api_key_env",
            fix="export it with the API key, or name none (null) for a server that wants none",
        )
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=key.strip(),
        timeout=endpoint.timeout,
        max_retries=endpoint.retries,
    )


async def request(
    openai_client: openai.AsyncOpenAI, endpoint: Endpoint, messages: Sequence[Message]
) -> Reply:
    """One reply of the server, after as many attempts as it takes or is allowed.

    Raises:
        UserError: There is none.
    """
    import openai

    try:
        completion: Any = await openai_client.chat.completions.create(
            model=endpoint.model,
            messages=list(messages),  # type: ignore[arg-type]
            **endpoint.settings,
        )
        choice = completion.choices[0]
        text = str(choice.message.content or "")
        if (usage := completion.usage) is not None:
            return Reply(text, int(usage.prompt_tokens), int(usage.completion_tokens))
        asked = sum(len(message["content"]) for message in messages)
        return Reply(text, asked // CHARS_PER_TOKEN, len(text) // CHARS_PER_TOKEN)
    except openai.APITimeoutError:
        attempts = endpoint.retries + 1
        raise UserError(
            f"{endpoint.base_url} gave no answer within {endpoint.timeout:g} s, {attempts} times",
            where="params.yaml: judge.llm.timeout",
            fix=f"raise it, or lower judge.llm.concurrency; {KEPT}",
        ) from None
    except openai.APIConnectionError as error:
        reason = error.__cause__ or error
        raise UserError(
            f"{endpoint.base_url} cannot be reached: {str(reason) or type(reason).__name__}",
            where="params.yaml: judge.llm.base_url",
            fix=f"check address and network; {KEPT}",
        ) from None
    except openai.APIStatusError as error:
        raise _refused(error, endpoint) from None
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError):
        raise UserError(
            f"what {endpoint.base_url} answers is no chat completion",
            where="params.yaml: judge.llm.base_url",
            fix="the address of most servers ends with /v1",
        ) from None


def _refused(error: openai.APIStatusError, endpoint: Endpoint) -> UserError:
    """An answer with an error status, as the user's to mend."""
    status = error.status_code
    where, fix = {
        400: (
            "model",
            "not all models take judge.llm.temperature and max_tokens: set them to null",
        ),
        401: ("api_key_env", f"check the key in {endpoint.api_key_env}"),
        403: ("api_key_env", f"check what the key in {endpoint.api_key_env} may do"),
        404: ("model", "check judge.llm.model and judge.llm.base_url"),
        429: ("concurrency", f"lower it, or wait; {KEPT}"),
    }.get(status, ("base_url", KEPT))
    said = " ".join(_said(error).split())
    said = f"{said[:200]}..." if len(said) > 200 else said
    return UserError(
        f"{endpoint.base_url} refuses the request for {endpoint.model} ({status}): {said}",
        where=f"params.yaml: judge.llm.{where}",
        fix=fix,
    )


def _said(error: openai.APIStatusError) -> str:
    """The server's own words, without the client's wrapping."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return error.message
