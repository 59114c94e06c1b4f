"""The launcher: which failure is told, where machines are, what may run."""

import json
import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from prlhf import cli, launch
from prlhf.infra.errors import EXIT_TERMINATED, UserError
from prlhf.infra.signals import Terminated
from prlhf.launch import PORT, Ending, Place, announced, next_run
from prlhf.params import load

ROOT = Path(__file__).resolve().parents[2]


def failed(exitcode: int, kind: Ending | None = None, **record) -> SimpleNamespace:
    data = {} if kind is None else {"kind": int(kind), "time": 5.0, **record}
    return SimpleNamespace(exitcode=exitcode, error_file_data=data, timestamp=4)


def told(failures) -> str:
    with pytest.raises(UserError) as error:
        launch._explain("train@pdpo", failures, len(failures))
    return str(error.value)


LEFT = failed(2, Ending.LEFT_ALONE, lines=[], traceback="")


def test_a_mistake_is_told_as_one_process_tells_it():
    mistake = failed(2, Ending.MISTAKE, lines=["a.parquet: no such file (make it)"])
    assert told({0: failed(-9), 1: LEFT, 2: mistake}) == "a.parquet: no such file (make it)"


def test_a_killed_process_is_told_before_those_that_it_left_alone():
    text = told({0: LEFT, 1: failed(-signal.SIGKILL), 2: failed(-signal.SIGTERM)})
    assert text.startswith("train@pdpo: process 1 of 3 was ended by SIGKILL (")


def test_of_several_killed_ones_the_first_is_told():
    later = failed(-signal.SIGKILL)
    later.timestamp = 9  # by the launcher, after the grace
    text = told({0: later, 1: failed(-signal.SIGSEGV)})
    assert "process 1 of 2 was ended by SIGSEGV" in text


def test_a_terminated_process_is_told_when_nothing_else_was_wrong():
    assert "process 0 of 2 was ended by SIGTERM" in told(
        {0: failed(143), 1: LEFT} | {1: failed(143)}
    )


def test_a_lost_connection_is_told_when_the_reason_is_elsewhere():
    assert told({0: LEFT}) == (
        "train@pdpo: process 0 of 1 lost its connection to another one "
        "(see what the other machines say)"
    )


def test_a_bug_shows_its_traceback_once(capsys):
    bug = failed(2, Ending.BUG, traceback="Traceback ...\nKeyError: 'x'")
    with pytest.raises(SystemExit) as ended:
        launch._explain("reference", {0: LEFT, 1: bug}, 2)
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "Traceback ...\nKeyError: 'x'\nerror: reference: process 1 of 2 failed\n"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no such file", where="a", fix="make it"), Ending.MISTAKE),
        (KeyError("x"), Ending.BUG),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
            Ending.LEFT_ALONE,
        ),
    ],
)
def test_errors_go_to_the_launcher_by_their_kind(tmp_path, monkeypatch, error, kind):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    launch._report(error)
    record = json.loads((tmp_path / "error.json").read_text())
    assert record["kind"] == kind
    assert type(error).__name__ in record["traceback"]
    assert record["lines"] == (["a: no such file (make it)"] if kind is Ending.MISTAKE else [])


def test_a_launcher_that_nohup_started_outlives_its_terminal(monkeypatch):
    """torch's launcher ends at each signal that it is told to handle, ignored before or not."""
    configs = []
    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch",
        lambda config, _: lambda *command: configs.append(config),
    )
    settings = load(ROOT / "params.yaml").launch
    before = {number: signal.getsignal(number) for number in launch.HANDLED}
    try:
        for number in launch.HANDLED:
            signal.signal(number, signal.default_int_handler)
        launch._start("train@pdpo", ["train"], settings, None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        launch._start("train@pdpo", ["train"], settings, None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [each.signals_to_handle for each in configs] == [
        "SIGTERM,SIGINT,SIGHUP",
        "SIGTERM,SIGINT",
    ]


def test_a_mistake_that_came_of_a_lost_connection_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    error = UserError("cannot be loaded")
    error.__cause__ = RuntimeError("gloo: timed out")
    launch._report(error)
    assert json.loads((tmp_path / "error.json").read_text())["kind"] == Ending.LEFT_ALONE


def test_a_process_ended_while_it_reports_leaves_no_half_report(tmp_path, monkeypatch):
    def terminated(path: Path) -> None:
        assert json.loads(path.read_text(encoding="utf-8"))["message"] == "gloo: closed"
        raise Terminated

    def leave(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr("prlhf.infra.distributed.joined", lambda strategy: nullcontext())
    monkeypatch.setattr("prlhf.infra.io.flush", terminated)
    monkeypatch.setattr(launch, "_leave", leave)
    with pytest.raises(SystemExit) as ended, launch.process("ddp"):
        raise RuntimeError("gloo: closed")
    assert ended.value.code == EXIT_TERMINATED
    assert list(tmp_path.iterdir()) == []


def test_the_environment_says_which_machine_this_is():
    variables = {"MASTER_ADDR": "node0", "NODE_RANK": "1"}
    assert Place.of(variables, 2) == Place(1, "node0", PORT)
    assert str(Place.of(variables | {"MASTER_PORT": "4000"}, 2)) == "node0:4000"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"NODE_RANK": "0"}, "MASTER_ADDR: launch.machines is 2, but nothing says where machine 0"),
        ({"MASTER_ADDR": "node0"}, "NODE_RANK: is not set (set it to a number from 0 to 1"),
        (
            {"MASTER_ADDR": "node0", "NODE_RANK": "2"},
            "NODE_RANK: '2' is invalid (set it to",
        ),
        (
            {"MASTER_ADDR": "node0", "NODE_RANK": "0", "MASTER_PORT": "x"},
            "MASTER_PORT: 'x' is invalid (set it to a number from 0 to 65535",
        ),
    ],
)
def test_what_is_missing_is_named(variables, problem):
    with pytest.raises(UserError) as error:
        Place.of(variables, 2)
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    "command",
    [
        ["reference"],
        ["train", "--method", "pdpo"],
        ["train-reward-model", "--method", "pdpo"],
        ["score-rewards", "--method", "pdpo"],
    ],
)
def test_machine_0_may_ask_for_stages(command):
    assert not launch._refusal(command)


@pytest.mark.parametrize(
    "command",
    [
        ["ingest"],
        ["base-model"],
        ["train", "--method"],
        ["train", "-m", "x"],
        ["x", "--method", "y"],
    ],
)
def test_machine_0_may_ask_for_nothing_else(command):
    assert launch._refusal(command) == f"is asked for {command}, which is no stage"


@pytest.fixture
def set_launch(tmp_path, monkeypatch):
    """Change `launch` in a copy of params.yaml, with room for two processes to a batch."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("  batch_size: auto ", "  batch_size: 4 ")
    text = text.replace("micro_batch_size: 4 ", "micro_batch_size: 2 ")
    monkeypatch.chdir(tmp_path)

    def change(key: str, value: str) -> None:
        head, section = text.split("\nlaunch:")
        section = re.sub(rf"(  {key}:) \w+", rf"\1 {value}", section)
        (tmp_path / "params.yaml").write_text(f"{head}\nlaunch:{section}", encoding="utf-8")

    return change


def test_a_machine_waits_in_silence(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert next_run(Place(1, "127.0.0.1", port), None, 0.3, launch._refusal) is None
    assert capfd.readouterr() == ("", "")


def meet(other: Callable[[Place], None]) -> list[str]:
    """What machine 0, which runs `reference`, and machine 1, which does `other`, complain of."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    place = Place(1, "127.0.0.1", port)
    said: dict[int, str] = {}

    def lead() -> None:
        try:
            with announced("reference", ["reference"], 2, replace(place, machine=0)):
                pass
        except UserError as error:
            said[0] = str(error)

    leader = threading.Thread(target=lead, daemon=True)
    leader.start()
    try:
        other(place)
    except UserError as error:
        said[1] = str(error)
    leader.join(60)
    assert not leader.is_alive()
    return [said.get(machine, "") for machine in (0, 1)]


def test_machines_that_run_the_same_meet():
    assert meet(lambda place: launch._wait("reference", ["reference"], place)) == ["", ""]
    assert meet(lambda place: next_run(place, None, None, launch._refusal)) == ["", ""]


def test_machines_that_run_different_things_part():
    """At once: neither waits for the other in torch's rendezvous."""
    train = ["train", "--method", "dpo"]
    fix = "(run the same on all machines, or `prlhf join` on all but machine 0)"
    assert meet(lambda place: launch._wait("train@dpo", train, place)) == [
        f"reference: machine 1 runs train@dpo {fix}",
        f"train@dpo: machine 0 runs reference {fix}",
    ]
    refused = meet(lambda place: next_run(place, None, None, lambda command: "is busy"))
    assert refused == [f"reference: machine 1 is busy {fix}", ""]


def test_processes_share_a_batch_evenly(set_launch):
    set_launch("processes", "2")
    assert load().launch.processes == 2
    set_launch("machines", "4")
    with pytest.raises(UserError) as error:
        load()
    # The reward model's section is not looked at: none is asked for.
    assert re.sub(r":\d+:", ":N:", str(error.value)) == (
        "params.yaml:N: optimizer.micro_batch_size: 2 pairs in each of 4 processes (launch) do not "
        "divide optimizer.batch_size (4)"
    )


def test_joining_needs_several_machines(set_launch, monkeypatch, capsys):
    set_launch("machines", "1")
    assert cli.execute(["join"]) == 2
    assert "params.yaml: launch.machines: there is one machine only" in capsys.readouterr().err
    set_launch("machines", "2")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("NODE_RANK", "0")
    assert cli.execute(["join"]) == 2
    assert "NODE_RANK: this is machine 0" in capsys.readouterr().err
