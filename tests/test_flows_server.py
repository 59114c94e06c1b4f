"""The Prefect server that a run starts for itself: what keeps it from working is told at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import server, without_proxy_to_loopback
from prlhf.infra.errors import UserError

PROXY = "http://someone:secret@127.0.0.1:9"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOSTS = st.lists(st.sampled_from(["", " a.example ", "10.0.0.0/8", "localhost", "*", ".b"]))


@given(
    st.sets(st.sampled_from(["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]), min_size=1),
    st.dictionaries(st.sampled_from(["NO_PROXY", "no_proxy"]), HOSTS.map(",".join)),
)
def test_this_machine_is_exempt_from_any_proxy_and_so_stays_what_was(proxies, exempt):
    environment = dict.fromkeys(proxies, PROXY) | exempt
    more = without_proxy_to_loopback(environment)
    assert more["no_proxy"] == more["NO_PROXY"]
    found = {"no": more["no_proxy"]}
    for host in LOOPBACK:
        assert urllib.request.proxy_bypass_environment(host, found)
    # Python, and with it httpx, reads the lower-case name first.
    given_ = exempt.get("no_proxy", exempt.get("NO_PROXY", ""))
    before = [host.strip() for host in given_.split(",") if host.strip()]
    assert more["no_proxy"].split(",")[: len(before)] == before
    assert without_proxy_to_loopback(environment | more) == more


def test_without_a_proxy_nothing_is_set():
    assert without_proxy_to_loopback({"NO_PROXY": "a.example", "PATH": "/"}) == {}


@pytest.fixture
def clean(monkeypatch):
    for name in list(os.environ):
        if name.lower() in {"all_proxy", "http_proxy", "https_proxy", "no_proxy"}:
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "foo://someone:secret@127.0.0.1:9"), ("https_proxy", "http://a:secret@b:x")],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(clean, name, value):
    clean.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: Prefect cannot use this proxy: ") as caught:
        server._require_network()
    assert "secret@" not in str(caught.value)


@pytest.mark.skipif(find_spec("socksio") is not None, reason="httpx takes SOCKS proxies here")
def test_a_socks_proxy_is_refused_with_what_it_needs(clean):
    clean.setenv("ALL_PROXY", "socks5://someone:secret@127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        server._require_network()
    [line] = caught.value.lines()
    assert line.startswith("ALL_PROXY: Prefect cannot use this proxy: ")
    assert "pip install httpx[socks]" in line
    assert "secret@" not in line


def test_certificates_that_are_not_there_are_named(clean, tmp_path):
    clean.setenv("SSL_CERT_FILE", str(tmp_path))
    with pytest.raises(UserError, match="SSL_CERT_FILE: certificates cannot be read: "):
        server._require_network()


def test_a_usable_environment_passes(clean):
    clean.setenv("HTTP_PROXY", PROXY)
    server._require_network()


@pytest.mark.parametrize("home", ["file", "file/below", "loop"])
def test_a_home_that_cannot_be_written_to_is_named_with_the_way_out(tmp_path, home):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError) as caught:
        server.require_home(tmp_path / home)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / home}: Prefect keeps its database here, and cannot: ")
    assert line.endswith("(set PREFECT_HOME to a directory that you can write to)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_home_is_one(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="and cannot: permission denied"):
        server.require_home(tmp_path / "prefect")


def test_a_home_is_made(tmp_path):
    server.require_home(tmp_path / "a" / "$HOME %s")
    assert list((tmp_path / "a" / "$HOME %s").iterdir()) == []


def started(code: str, log) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "print('INFO'); raise OSError(28, 'No space left on device')",
            "Prefect's server exited with 1: [Errno 28] No space left on device",
        ),
        (
            "import sys; print('x.DatabaseError: is no database\\n\\nExiting.'); sys.exit(3)",
            "Prefect's server exited with 3: is no database",
        ),
        (
            "import os; os.kill(os.getpid(), 9)",
            "Prefect's server was ended by SIGKILL, which is what the system does when memory "
            "runs out",
        ),
    ],
)
def test_a_server_that_dies_is_not_waited_for_and_its_reason_is_told(code, line):
    before = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = started(code, log)
        assert not server._answers(process, "http://127.0.0.1:9/health")
        assert server._why(process, log) == line
    assert time.monotonic() - before < server.PATIENCE / 3


def test_a_run_whose_server_dies_ends(monkeypatch):
    sent: list[tuple[int, int]] = []
    over, lost = threading.Event(), threading.Event()

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        over.set()

    monkeypatch.setattr(server.os, "kill", kill)
    monkeypatch.setattr(server.logging, "disable", lambda level: None)
    with tempfile.TemporaryFile() as log:
        server._guard(started("", log), log, over, lost)
    assert lost.is_set()
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_run_that_is_over_is_not_ended(monkeypatch):
    over, lost = threading.Event(), threading.Event()
    over.set()
    with tempfile.TemporaryFile() as log:
        process = started("import time; time.sleep(600)", log)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(server.os, "kill", lambda *_: pytest.fail("the run was over"))
                server._guard(process, log, over, lost)
        finally:
            process.kill()
            process.wait()
    assert not lost.is_set()
