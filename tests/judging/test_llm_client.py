"""The client against a server on this machine: what is kept, repeated, limited and refused."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path

import pytest

from chat_server import ChatServer, Exchange, longer, verdict
from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.judging.llm_client import Cache, Client
from prlhf.judging.llm_judge import CORRECTION, question, read_answer
from prlhf.params import LlmJudgeParams, load

ROOT = Path(__file__).resolve().parents[2]
PROMPT = canonical_prompt("Why?")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Back-off of milliseconds, and a key."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setenv("TEST_KEY", "secret")


@pytest.fixture
def params(server: ChatServer) -> LlmJudgeParams:
    return LlmJudgeParams(
        **load(ROOT / "params.yaml").judge.llm.model_dump()
        | {
            "base_url": server.url,
            "model": "tester",
            "api_key_env": "TEST_KEY",
            "temperature": 0.0,
            "max_tokens": 50,
            "timeout": 30.0,
            "concurrency": 4,
            "retries": 2,
            "reask": 1,
            "price_input": 2.0,
            "price_output": 8.0,
            "max_requests": None,
            "max_cost": None,
        }
    )


@pytest.fixture
def client(params: LlmJudgeParams, tmp_path: Path):
    """Make a client with changes to the parameters; all of them share a cache."""

    def make(**changes):
        cache = Cache(tmp_path / "cache")
        return Client(params.model_copy(update=changes), read_answer, CORRECTION, cache)

    return make


def ask(client, count=1, start=0):
    """Questions about answers of different lengths; the winners, None where there is none."""
    asked = [question("", PROMPT, "x" * (i + 2), "x") for i in range(start, start + count)]
    return [answer and answer.winner for answer in client.ask(asked, "test")]


def fail_once(status: int, **headers: str):
    """Fail each question when it comes for the first time."""
    seen = set()

    def behave(exchange: Exchange) -> None:
        if exchange.question in seen:
            longer(exchange)
        else:
            seen.add(exchange.question)
            exchange.fail(status, "not now", **headers)

    return behave


def test_answers_come_back_in_order_with_their_settings_and_key(server, client):
    one = client()
    asked = [question("", PROMPT, "x" * a, "x" * b) for a, b in ((1, 2), (2, 1), (2, 2))] * 3
    answers = one.ask(asked, "test")
    assert [answer.winner for answer in answers] == ["B", "A", "tie"] * 3
    assert len(server.requests) == 3
    assert set(server.keys) == {"Bearer secret"}
    sent = server.requests[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tester", 0.0, 50)
    assert (one.usage.requests, one.usage.input_tokens, one.usage.output_tokens) == (3, 300, 30)
    assert one.usage.cost(one.params) == pytest.approx((300 * 2 + 30 * 8) / 1e6)


def test_settings_of_null_are_not_sent(server, client):
    ask(client(temperature=None, max_tokens=None))
    assert not {"temperature", "max_tokens"} & server.requests[0].keys()


def test_a_second_run_asks_nothing_and_counts_the_same(server, client):
    first, second = client(), client()
    assert ask(first, 5) == ask(second, 5) == ["A"] * 5
    assert len(server.requests) == 5
    assert second.usage == first.usage


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"temperature": 0.5}, {"max_tokens": 60}], ids=str
)
def test_what_changes_an_answer_is_asked_anew(server, client, change):
    ask(client())
    ask(client(**change))
    assert len(server.requests) == 2


def test_what_does_not_change_an_answer_is_not_asked_anew(server, client):
    ask(client())
    ask(client(timeout=5.0, concurrency=1, retries=0, price_input=9.0, max_requests=7))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "behave",
    [
        fail_once(429, Retry_After="0.05"),
        fail_once(500),
        fail_once(503, Retry_After="0.01"),
        fail_once(408),
    ],
    ids=["rate limit", "server error", "overload", "time-out"],
)
def test_passing_failures_are_retried(server, client, behave):
    server.behave = behave
    assert ask(client(), 3) == ["A"] * 3
    assert len(server.requests) == 6


def test_a_retry_waits_as_long_as_the_server_asks(server, client, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("anyio.sleep", sleep)
    server.behave = fail_once(429, Retry_After="37")
    assert ask(client()) == ["A"]
    assert waited == [37.0]


def test_a_broken_connection_is_tried_again(server, client):
    def behave(exchange: Exchange) -> None:
        exchange.reset() if exchange.number == 0 else longer(exchange)

    server.behave = behave
    assert ask(client()) == ["A"]
    assert len(server.requests) == 2


def test_an_answer_that_does_not_come_is_waited_for_and_tried_again(server, client):
    released = threading.Event()

    def behave(exchange: Exchange) -> None:
        if exchange.number == 0:
            released.wait(30)
        longer(exchange)

    server.behave = behave
    try:
        assert ask(client(timeout=0.2)) == ["A"]
    finally:
        released.set()
    assert len(server.requests) == 2


def test_no_more_than_allowed_are_on_their_way(server, client):
    def behave(exchange: Exchange) -> None:
        exchange.wait(0.02)
        longer(exchange)

    server.behave = behave
    ask(client(concurrency=3), 12)
    assert server.most_at_once == 3


def test_an_unreadable_answer_is_asked_for_again_in_the_same_conversation(server, client):
    def behave(exchange: Exchange) -> None:
        exchange.say("hm" if len(exchange.body["messages"]) == 2 else verdict("B"))

    server.behave = behave
    one = client()
    assert ask(one) == ["B"]
    assert [message["role"] for message in server.requests[1]["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert server.requests[1]["messages"][2]["content"] == "hm"
    assert (one.usage.requests, one.unreadable) == (2, 0)
    # The first attempt is part of what is kept.
    again = client()
    assert ask(again) == ["B"]
    assert again.usage.requests == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("text", ["I will not say.", "", None])
def test_a_judge_who_does_not_answer_is_not_asked_for_ever(server, client, text):
    server.behave = lambda exchange: exchange.say(text)
    one = client(reask=2)
    assert ask(one, 2) == [None, None]
    assert len(server.requests) == 6
    assert one.unreadable == 2
    again = client(reask=2)
    assert ask(again, 2) == [None, None]
    assert len(server.requests) == 6


def test_tokens_are_estimated_where_the_server_does_not_count_them(server, client):
    server.behave = lambda exchange: exchange.say("A" * 8 + '{"winner": "A"}', usage=None)
    one = client()
    ask(one)
    characters = sum(len(message["content"]) for message in server.requests[0]["messages"])
    assert (one.usage.input_tokens, one.usage.output_tokens) == (characters // 4, 23 // 4)


# What stops a run


def stop(client, *count: int) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(client, *count)
    return caught.value


def test_a_run_that_failed_goes_on_where_it_stopped(server, client):
    def behave(exchange: Exchange) -> None:
        longer(exchange) if exchange.number < 5 else exchange.fail(400, "no credit left")

    server.behave = behave
    error = stop(client(concurrency=1), 10)
    assert "(400): no credit left" in error.problem
    server.behave, paid = longer, len(server.requests)
    assert ask(client(concurrency=1), 10) == ["A"] * 10
    assert (paid, len(server.requests)) == (6, 11)


def test_what_is_on_its_way_when_one_fails_is_kept(server, client, tmp_path):
    failed = threading.Event()

    def behave(exchange: Exchange) -> None:
        if len(exchange.shown("answer_a")) == 2:
            exchange.fail(401, "wrong key")
            failed.set()
        else:
            failed.wait(30)
            exchange.wait(0.05)
            longer(exchange)

    server.behave = behave
    stop(client(concurrency=4), 9)
    assert len(list((tmp_path / "cache").glob("*/*.json"))) == 3
    assert len(server.requests) == 4


def test_too_many_questions_are_refused_before_any_is_paid_for(server, client):
    ask(client(), 2)
    error = stop(client(max_requests=4), 5)
    assert len(server.requests) == 2
    assert error.where == "params.yaml: judge.llm.max_requests"
    assert error.problem.startswith("5 requests are needed, 2 of them answered earlier, and 4 are")
    assert ask(client(max_requests=5), 5) == ["A"] * 5


def test_asking_again_stays_within_the_limit(server, client):
    server.behave = lambda exchange: exchange.say("hm")
    error = stop(client(max_requests=6, reask=5, concurrency=3), 5)
    assert len(server.requests) == 6
    assert error.where == "params.yaml: judge.llm.max_requests"


def test_the_cost_stays_within_the_limit_over_all_runs(server, client):
    # A request costs (100 * 2 + 10 * 8) / 1e6 = 0.00028.
    error = stop(client(max_cost=0.001, concurrency=1), 10)
    assert len(server.requests) == 4
    assert error.problem == "the budget is used up: 4 requests, cost 0.00112"
    assert error.where == "params.yaml: judge.llm.max_cost"
    assert "raise it" in error.fix
    stop(client(max_cost=0.001, concurrency=1), 10)
    assert len(server.requests) == 4
    assert ask(client(max_cost=1.0, concurrency=1), 10) == ["A"] * 10
    assert len(server.requests) == 10


@pytest.mark.parametrize(
    ("status", "where", "words"),
    [
        (400, "model", "set them to null"),
        (401, "api_key_env", "check the key in TEST_KEY"),
        (403, "api_key_env", "TEST_KEY"),
        (404, "model", "check judge.llm.model"),
        (429, "concurrency", "lower it, or wait"),
        (500, "base_url", "is kept"),
    ],
)
def test_a_refusal_is_one_line_with_what_the_server_said(server, client, status, where, words):
    server.behave = lambda exchange: exchange.fail(status, "it\nwas  like this")
    error = stop(client(retries=1))
    assert error.where == f"params.yaml: judge.llm.{where}"
    assert error.problem == (
        f"{server.url} refuses the request for tester ({status}): it was like this"
    )
    assert words in error.fix
    assert len(server.requests) == (2 if status in (429, 500) else 1)


def test_a_server_that_never_answers(server, client):
    released = threading.Event()
    server.behave = lambda exchange: released.wait(30)
    try:
        error = stop(client(timeout=0.05, retries=1))
    finally:
        released.set()
    assert error.where == "params.yaml: judge.llm.timeout"
    assert error.problem == f"{server.url} gave no answer within 0.05 s, 2 times"


def test_a_connection_that_always_breaks(server, client):
    server.behave = lambda exchange: exchange.reset()
    error = stop(client(retries=1))
    assert error.where == "params.yaml: judge.llm.base_url"
    assert "cannot be reached" in error.problem
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "payload", ["<html>Welcome</html>", {}, {"choices": []}, {"choices": None}, [], "{"], ids=str
)
def test_an_answer_that_is_no_chat_completion(server, client, payload):
    server.behave = lambda exchange: exchange.send(200, payload)
    error = stop(client())
    assert error.where == "params.yaml: judge.llm.base_url"
    assert "is no chat completion" in error.problem


@pytest.mark.parametrize("value", [None, "", "  "])
def test_without_a_key_nothing_is_asked(server, client, monkeypatch, value):
    ask(client())
    monkeypatch.delenv("TEST_KEY")
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    error = stop(client(), 2)
    assert error.problem == "the environment variable TEST_KEY is not set"
    assert len(server.requests) == 1
    # What is kept needs no key.
    assert ask(client()) == ["A"]


def test_a_server_that_wants_no_key(server, client):
    assert ask(client(api_key_env=None)) == ["A"]


def test_the_package_is_missing(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    error = stop(client())
    assert error.problem == "a language model as judge needs the package openai"
    assert error.fix == "pip install 'prlhf[judge]'"


def test_the_key_is_in_no_file(server, client, tmp_path):
    ask(client(), 3)
    with contextlib.suppress(UserError):
        server.behave = lambda exchange: exchange.fail(401, "wrong key")
        ask(client(), 1, 99)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        assert "secret" not in path.read_text()
        assert set(json.loads(path.read_text())) == {"text", "input_tokens", "output_tokens"}
