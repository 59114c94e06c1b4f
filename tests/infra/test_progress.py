"""Progress where there is no terminal: few, plain and true lines."""

import sys

import pytest

from prlhf.infra import progress
from prlhf.infra.progress import Progress, clock


@pytest.fixture
def time_passes(monkeypatch):
    """A clock that stands still until told otherwise."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_lines_come_at_most_every_interval(time_passes, capsys):
    with Progress(680, "reference", "texts") as bar:
        for _ in range(8):
            time_passes(4)
            bar.advance(60)
    assert capsys.readouterr().err.splitlines() == [
        "reference: 180/680 texts, 15 texts/s, ETA 0:33",
        "reference: 360/680 texts, 15 texts/s, ETA 0:21",
        "reference: 480/680 texts, 15 texts/s, ETA 0:13",
    ]


def test_the_last_line_says_what_it_took_with_the_latest_fields(time_passes, capsys):
    with Progress(2, "train", "steps") as bar:
        time_passes(3660)
        bar.advance(loss=0.69314718)
        time_passes(3660)
        bar.advance(loss=0.5, note="best")
    assert capsys.readouterr().err.splitlines() == [
        "train: 1/2 steps, 0.000273 steps/s, ETA 1:01:00, loss 0.6931",
        "train: 2/2 steps, 0.000273 steps/s, took 2:02:00, loss 0.5, note best",
    ]


def test_short_work_is_silent(time_passes, capsys):
    with Progress(3, "x", "letters") as bar:
        for _ in "abc":
            bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_failure_adds_no_line(time_passes, capsys):
    with pytest.raises(ValueError, match="stop"), Progress(5, "x", "things") as bar:
        time_passes(20)
        bar.advance()
        bar.advance()
        raise ValueError("stop")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, "train", "steps") as bar:
        bar.advance(4, loss=0.25)
    printed = capsys.readouterr().err
    assert "train: 100%" in printed
    assert "4/4" in printed


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.7, "1:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_there_may_be_more_to_do_than_thought(time_passes, capsys):
    with Progress(2, "x", "rows") as bar:
        bar.expect(2)
        time_passes(10)
        bar.advance(2)
    assert capsys.readouterr().err.splitlines() == ["x: 2/4 rows, 0.2 rows/s, ETA 0:10"]
