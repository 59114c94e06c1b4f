"""`prlhf`: quick to start, one line per mistake, tracebacks for bugs only."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from prlhf import cli
from prlhf.infra import tracking
from prlhf.infra.errors import UserError, UserErrors
from prlhf.infra.signals import Terminated
from prlhf.params import load
from prlhf.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A directory with the committed params.yaml and dvc.yaml; the environment is put back."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (*cli.ENVIRONMENT, *cli.OFFLINE, "TQDM_DISABLE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stage(monkeypatch):
    """Put a function in the place of a stage: `stage("train", run, "seed", "train")`."""

    def install(module: str, run, *params: str) -> None:
        fake = ModuleType(f"prlhf.stages.{module}")
        fake.PARAMS = params
        fake.run = run
        monkeypatch.setitem(sys.modules, fake.__name__, fake)

    return install


@pytest.fixture
def failing(stage, capsys):
    """What `prlhf ingest` prints on stderr, after its first line, when the stage raises."""

    def check(error: BaseException, status: int) -> list[str]:
        def run():
            raise error

        stage("ingest", run)
        assert cli.execute(["ingest"]) == status
        printed = capsys.readouterr()
        assert printed.out == ""
        first, *rest = printed.err.splitlines()
        assert first == "ingest: started"
        return rest

    return check


def python(code: str, *, interrupt: signal.Handlers = signal.SIG_DFL, **options):
    """Start Python code, with SIGINT as in a terminal whatever these tests were started from."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),
        **options,
    )


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from prlhf.cli import execute; status = execute(['--help'])\n"
        "heavy = {'torch', 'pandas', 'numpy', 'transformers', 'pydantic', 'ruamel.yaml', 'dvc'}\n"
        "sys.exit(status or ', '.join(heavy & set(sys.modules)) or 0)"
    )
    process = python(code)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("Usage: prlhf [OPTIONS] COMMAND")


def test_help_explains_every_stage_and_command_on_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.execute(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in cli.app.commands.items():
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(command.get_short_help_str(100)), "wrapped"
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line.split()]
    order = [name for name in shown if name in {stage.command for stage in STAGES}]
    assert order == [stage.command for stage in STAGES]


def test_what_libraries_warn_of_does_not_reach_the_terminal():
    """Neither by `warnings` nor by a logger without a handler, unless Python is asked for it."""
    code = (
        "import logging, sys, types, warnings; from prlhf import cli\n"
        "stage = types.ModuleType('prlhf.stages.report'); stage.PARAMS = ()\n"
        "def run():\n"
        "    import numpy, torch, transformers\n"
        "    warnings.warn('divided by zero', RuntimeWarning); numpy.ones(1) / 0\n"
        "    logging.getLogger('library').warning('is deprecated')\n"
        "stage.run = run; sys.modules[stage.__name__] = stage\n"
        "cli.main(['report'])"
    )
    shown = {}
    for asked in ("", "default"):
        process = python(code, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": asked})
        _, shown[asked] = process.communicate()
        assert process.returncode == 0
    assert re.fullmatch(r"report: started\nreport: done in [\d.]+ s\n", shown[""])
    assert "divided by zero" in shown["default"]


def test_the_version_is_shown(capsys):
    assert cli.execute(["--version"]) == 0
    assert re.fullmatch(r"prlhf \d+\S+\n", capsys.readouterr().out)


def test_no_arguments_show_the_help(capsys):
    assert cli.execute([]) == 2
    assert "Stages, in the order they run" in capsys.readouterr().err


@pytest.mark.parametrize("name", [stage.command for stage in STAGES])
def test_every_stage_has_help_of_its_own(name, capsys):
    assert cli.execute([name, "--help"]) == 0
    assert "Writes" in capsys.readouterr().out


def test_training_reports_to_the_trackers_of_the_parameters(stage, workplace, capsys, monkeypatch):
    def run(seed, name):
        tracking.tracking_callbacks("a run")

    stage("train", run, "seed")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.execute(["train", "--method", "pdpo"]) == 0
    params = workplace / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("report_to: []", "report_to: [wandb]"), encoding="utf-8")
    assert cli.execute(["train", "--method", "pdpo"]) == 2
    assert "error: params.yaml: track.report_to: wandb is not installed" in capsys.readouterr().err


def test_a_stage_gets_its_sections_and_no_others(stage, workplace, capsys):
    calls = []

    def record(**arguments):
        calls.append(arguments)

    params = load()
    stage("validate", record, "seed", "validate", "split")
    assert cli.execute(["validate"]) == 0
    assert calls.pop() == {"seed": params.seed, "rules": params.validate_, "split": params.split}

    stage("train", record, "train", "methods.*")
    assert cli.execute(["train", "--method", "pdpo"]) == 0
    assert calls.pop() == {
        "train": params.train,
        "method": params.methods["pdpo"],
        "name": "pdpo",
    }

    stage("generate", record, "tokens")
    assert cli.execute(["generate", "--method", "base"]) == 0
    assert calls.pop() == {"tokens": params.tokens, "name": "base"}

    stage("evaluate", record, "methods", "compare")
    assert cli.execute(["evaluate"]) == 0
    assert calls.pop() == {"methods": params.methods, "compare": params.compare}


def test_a_stage_says_that_it_starts_and_how_long_it_took(stage, capsys):
    stage("train", lambda **_: None, "train")
    cli.execute(["train", "--method", "dpo"])
    printed = capsys.readouterr()
    assert printed.out == ""
    started, done = printed.err.splitlines()
    assert started == "train@dpo: started"
    assert done.startswith("train@dpo: done in 0.")
    assert done.endswith(" s")


def test_what_dvc_runs_checks_first_that_dvc_can_keep_the_result(
    stage, workplace, capsys, monkeypatch, tmp_path_factory
):
    stage("ingest", lambda **_: None)
    (workplace / ".git").mkdir()
    (workplace / "data").symlink_to(tmp_path_factory.mktemp("disk"))
    assert cli.execute(["ingest"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("DVC_STAGE", "ingest")
    assert cli.execute(["ingest"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data: leads to ")


def test_underscores_are_hyphens(stage, capsys):
    calls = []
    stage("pretrain_user_model", lambda: calls.append(1))
    for name in ("pretrain-user-model", "pretrain_user_model"):
        assert cli.execute([name]) == 0
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "error: prlhf trian: no such command (did you mean train?)"),
        (["zzz"], "error: prlhf zzz: no such command (see `prlhf --help`)"),
        (["params", "chekc"], "error: prlhf params chekc: no such command (did you mean check?)"),
        (["--bogus"], "error: prlhf: No such option '--bogus' (see `prlhf --help`)"),
        (["train"], "error: prlhf train: Missing option '--method' (see `prlhf train --help`)"),
        (
            ["train", "--method", "base"],
            "error: prlhf train --method: unknown method base (params.yaml has dpo, ",
        ),
        (
            ["score", "--method", "x"],
            "error: prlhf score --method: unknown method x (params.yaml has base, prompted, dpo, ",
        ),
        (["ingest", "now"], "error: prlhf ingest: Got unexpected extra argument (now) (see `prlhf"),
        (["summary"], "error: reports/metrics.json: no such file (`dvc repro` makes what is miss"),
        (["params", "check", "no.yaml"], "error: no.yaml: no such file (run this in the directo"),
    ],
)
def test_wrong_command_lines_are_one_line(arguments, line, capsys):
    assert cli.execute(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(line)


def test_faults_in_params_stop_every_stage_before_it_starts(workplace, stage, capsys):
    stage("ingest", lambda: pytest.fail("started"))
    text = (ROOT / "params.yaml").read_text().replace("\nseed:", "\nsede:")
    (workplace / "params.yaml").write_text(text)
    number = text[: text.index("sede:")].count("\n") + 1
    line = f"error: params.yaml:{number}: sede: unknown key (did you mean seed?)\n"
    for arguments in (["ingest"], ["params", "check"]):
        assert cli.execute(arguments) == 2
        assert capsys.readouterr().err == line


def test_user_errors_are_plain_lines(failing):
    one = UserError("is empty", where="a.csv", fix="add rows")
    assert failing(one, 2) == ["error: a.csv: is empty (add rows)"]
    assert failing(UserErrors([one, UserError("two")]), 2) == [
        "error: a.csv: is empty (add rows)",
        "error: two",
    ]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "error: x.bin: no space left on device (free some space, then run again)"),
        (errno.EROFS, "error: x.bin: read-only file system"),
        (errno.EACCES, "error: x.bin: permission denied (check its permissions)"),
        (errno.ENOENT, "error: x.bin: no such file or directory (`dvc repro` makes what is missi"),
        (errno.EISDIR, "error: x.bin: is a directory"),
    ],
)
def test_errors_of_the_system_are_one_line_with_the_file(failing, number, line):
    [printed] = failing(OSError(number, os.strerror(number), "x.bin"), 2)
    assert printed.startswith(line)


def test_a_full_disk_is_one_line_whatever_a_library_makes_of_it(failing):
    class SafetensorError(Exception):
        pass

    wrapped = RuntimeError("writing failed")
    wrapped.__context__ = OSError(errno.ENOSPC, "No space left on device", "model.bin")
    rust = SafetensorError("I/O error: No space left on device (os error 28)")
    arrow = OSError(errno.ENOSPC, "Error writing bytes to file")
    fix = "(free some space, then run again)"
    assert failing(wrapped, 2) == [f"error: model.bin: no space left on device {fix}"]
    assert failing(rust, 2) == [f"error: no space left on device {fix}"]
    assert failing(arrow, 2) == [f"error: no space left on device {fix}"]


def test_out_of_memory_is_one_line(failing):
    accelerator = type("OutOfMemoryError", (RuntimeError,), {})
    for error in (MemoryError(), accelerator("CUDA out of memory. Tried ...")):
        [line] = failing(error, 2)
        assert line.startswith("error: out of memory (lower optimizer.micro_batch_size")


def test_interruptions_end_quietly(failing):
    assert failing(KeyboardInterrupt(), 130) == ["", "error: interrupted"]
    assert failing(Terminated(), 143) == ["", "error: terminated"]


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError("no errno"), KeyError("x"), RuntimeError("boom")]
)
def test_bugs_keep_their_traceback(stage, error):
    def run():
        raise error

    stage("ingest", run)
    with pytest.raises(type(error)):
        cli.execute(["ingest"])


SLEEPER = """
import sys, time, types
from pathlib import Path
from prlhf.infra.io import atomic_path
class Finalised:
    def __del__(self):
        wait()
def wait():
    print("writing", flush=True)
    time.sleep(60)
def run():
    with atomic_path("result.txt") as partial:
        partial.write_text("half")
        WAIT()
        time.sleep(60)
sys.modules["prlhf.stages.ingest"] = types.SimpleNamespace(PARAMS=(), run=run)
from prlhf.cli import main
main(["ingest"])
"""


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
@pytest.mark.parametrize("wait", ["wait", "Finalised"])
def test_a_signal_leaves_nothing_half_written(workplace, wait, number, status, word):
    process = python(SLEEPER.replace("WAIT", wait))
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in err
    assert err.rstrip().splitlines()[-1] == f"error: {word}"
    assert sorted(path.name for path in workplace.iterdir()) == ["dvc.yaml", "params.yaml"]


def test_a_command_in_the_background_is_not_interrupted_but_terminated(workplace):
    """Started by `nohup` or with `&` in a script, it ignores SIGINT as any other program does."""
    process = python(SLEEPER.replace("WAIT", "wait"), interrupt=signal.SIG_IGN)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert err.rstrip().splitlines()[-1] == "error: terminated"


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    process = python("from prlhf.cli import main; main(['--help'])", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=20)
    assert err == ""


@pytest.mark.parametrize(
    ("name", "source", "offline"),
    [
        ("ingest", "builtin", True),
        ("ingest", "hub", False),
        ("ingest", "prism", False),
        ("base-model", "builtin", False),
        ("reference", "hub", True),
    ],
)
def test_only_stages_that_fetch_something_may_use_the_network(
    workplace, stage, name, source, offline
):
    path = workplace / "params.yaml"
    text = path.read_text()
    if source == "prism":
        text = text.replace("source: builtin", "source: prism")
    if source == "hub":
        text = text.replace("source: builtin", "source: hub").replace("id: null", "id: a/b")
    path.write_text(text)
    seen = {}
    stage(name.replace("-", "_"), lambda: seen.update(os.environ))
    assert cli.execute([name]) == 0
    assert (seen.get("HF_HUB_OFFLINE") == "1") is offline


def test_telemetry_is_off_unless_the_user_asked_for_it(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert os.environ["DO_NOT_TRACK"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_params_check(workplace, capsys):
    assert cli.execute(["params", "check"]) == 0
    assert capsys.readouterr().out == "params.yaml: good\n"
    path = workplace / "params.yaml"
    path.write_text(path.read_text().replace("\n  dpo:", "\n  other:"))
    assert cli.execute(["params", "check"]) == 2
    assert "compare.trained: names dpo, but methods has [other, " in capsys.readouterr().err


def test_params_docs(workplace, capsys):
    assert cli.execute(["params", "docs", "--check"]) == 2
    assert capsys.readouterr().err == (
        "error: docs/parameters.md: out of date (run `prlhf params docs`)\n"
    )
    assert not (workplace / "docs").exists()
    assert cli.execute(["params", "docs"]) == 0
    assert (workplace / "docs" / "parameters.md").read_text().startswith("# Parameters\n")
    assert cli.execute(["params", "docs", "--check"]) == 0
    path = workplace / "params.yaml"
    path.write_text(path.read_text().replace("# passes over", "# rounds over"))
    capsys.readouterr()
    assert cli.execute(["params", "docs", "--check"]) == 2
    assert capsys.readouterr().err == "error: params.yaml: out of date (run `prlhf params docs`)\n"
    assert cli.execute(["params", "docs"]) == 0
    assert "# passes over" in path.read_text()


def test_summary_prints_the_table_and_the_report(workplace, monkeypatch, capsys):
    def render(metrics, evaluation):
        return f"{evaluation['subject']} {metrics['accuracy']}\n"

    monkeypatch.setattr("prlhf.report.summary.render", render)
    (workplace / "reports").mkdir()
    (workplace / "reports" / "metrics.json").write_text('{"accuracy": 0.75}')
    (workplace / "reports" / "evaluation.json").write_text('{"subject": "mine"}')
    assert cli.execute(["summary"]) == 0
    assert capsys.readouterr().out == "mine 0.75\n"
    (workplace / "reports" / "report.html").write_text("<html>")
    assert cli.execute(["summary"]) == 0
    assert capsys.readouterr().out == (
        f"mine 0.75\n\nReport: {workplace / 'reports' / 'report.html'}\n"
    )


def test_simulate_hands_its_options_on(monkeypatch):
    calls = []
    fake = SimpleNamespace(run=lambda *names, **options: calls.append((names, options)))
    monkeypatch.setattr("prlhf.simulate", fake, raising=False)
    assert cli.execute(["simulate", "style", "--out", "x.jsonl.gz", "--seed", "3"]) == 0
    [(names, options)] = calls
    assert names == ("style",)
    assert options == {
        "base": Path("models/base"),
        "prompts": Path("data/seed/style/prompts.txt"),
        "out": Path("x.jsonl.gz"),
        "seed": 3,
        "keep": 2,
    }
