"""A language model as judge, through DVC: paid for once, whatever happens."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from e2e_project import Project, stop

from chat_server import ChatServer, Exchange, chat_server, longer

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with chat_server() as running:
        yield running


@pytest.fixture
def judged(project: Project, server: ChatServer) -> Project:
    """A finished project, to be judged by the server."""
    # The tiny model's answers are noise; they are not to lose before the judge is asked.
    project.set(
        {
            "judge.kind": "llm",
            "judge.degenerate_repetition": 1.0,
            "judge.degenerate_nll": 100.0,
            "judge.llm.base_url": server.url,
            "judge.llm.model": "tester",
            "judge.llm.api_key_env": "JUDGE_TEST_KEY",
            "judge.llm.concurrency": 2,
            "judge.llm.choices": 4,
        }
    )
    return project


def test_a_judge_is_paid_once_and_evaluation_judges_nothing(
    judged: Project, server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    result = judged.run("prlhf", "judge", status=2)
    assert len(result.errors) == 1
    assert "the environment variable JUDGE_TEST_KEY is not set" in result.errors[0]
    monkeypatch.setenv("JUDGE_TEST_KEY", "secret")
    assert judged.run("dvc", "repro").ran == ["judge", "evaluate", "report"]
    paid = len(server.requests)
    assert set(server.keys) == {"Bearer secret"}
    details = judged.json("data/judged/judge.json")["details"]["llm"]
    assert details["requests"] == paid > 20
    assert "tester" in (judged / "reports/report.html").read_text(encoding="utf-8")
    judged.set({"evaluate.confidence": 0.8})
    assert judged.run("dvc", "repro").ran == ["evaluate", "report"]
    judged.forget("judge", "data/judged")
    monkeypatch.delenv("JUDGE_TEST_KEY")
    assert "judge" in judged.run("dvc", "repro").ran
    assert judged.json("data/judged/judge.json")["details"]["llm"] == details
    assert len(server.requests) == paid


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_judgement_that_was_stopped_goes_on_with_what_is_missing(
    judged: Project, server: ChatServer, monkeypatch: pytest.MonkeyPatch, number: int, status: int
):
    monkeypatch.setenv("JUDGE_TEST_KEY", "secret")
    reached, released = threading.Event(), threading.Event()

    def behave(exchange: Exchange) -> None:
        if exchange.number < 8:
            longer(exchange)
        else:
            reached.set()
            released.wait(600)

    server.behave = behave
    process = judged.start("prlhf", "judge")
    try:
        assert reached.wait(600)
        # Those that came before it are on disk; one of two may still be on its way there.
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=600)
    finally:
        released.set()
        stop(process)
    assert process.returncode == status, err
    assert "Traceback" not in err
    judged.network_log.unlink(missing_ok=True)
    kept = len(list((judged / ".cache/judge").glob("*/*.json")))
    assert kept >= 7
    server.behave = longer
    before = len(server.requests)
    judged.run("prlhf", "judge")
    details = judged.json("data/judged/judge.json")["details"]["llm"]
    # Of the two requests of the command that was killed, one may have come in late.
    late = len(server.requests) - before - (details["requests"] - kept)
    assert late in ((0, 1) if number == signal.SIGKILL else (0,))
