"""Links, processors and threads of a benchmark: there while it runs, gone afterwards, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pilotfish import signals
from pilotfish.bench.apart import run_apart
from pilotfish.bench.link_process import NOWHERE, LinkProcess
from pilotfish.bench.machine import machine
from pilotfish.bench.pinning import pinned
from pilotfish_core.errors import InvalidParameter, LocalError

COMMAND = """
import sys, threading
from pilotfish import cli
from pilotfish.bench.link_process import NOWHERE, LinkProcess

def run(_):
    with LinkProcess(NOWHERE, ["--rtt=1ms"]) as link:
        print(link._process.pid, flush=True)
        while True:  # a signal that comes just before a wait does not wake Python from it
            threading.Event().wait(0.2)

class Parser:
    def parse_args(self, argv):
        class Arguments: pass
        Arguments.run = staticmethod(run)
        return Arguments

cli._parser = Parser
sys.exit(cli.main([]))
"""


@pytest.fixture
def echo() -> Iterator[str]:
    """An address at which everything comes back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(4096):
                        connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = server.getsockname()
        yield f"{host}:{port}"
        with contextlib.suppress(OSError), socket.create_connection((host, port)):
            pass  # in case nobody has come
        thread.join()


def test_a_link_passes_on_what_is_sent_in_its_time(echo: str) -> None:
    with LinkProcess(echo, ["--rtt=40ms"]) as link:
        assert link.running
        host, _, port = link.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            for _ in range(2):  # the first one waits for the handshake, too
                began = time.monotonic()
                connection.sendall(b"ping")
                assert connection.recv(4096) == b"ping"
            assert time.monotonic() - began >= 0.039
    assert not link.running
    link.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rtt=5ms", "--jitter=9ms"], r"^the link: jitter_s is 0.009.*; expected at most the round trip"),
        (["--rate=much"], "^the link: --rate-up is 'much'; expected a rate"),
        (["--loss=all"], "^the link: argument --loss: invalid float value: 'all'"),
    ],
)
def test_a_link_that_cannot_be_is_refused(flags: list[str], message: str) -> None:
    link = LinkProcess(NOWHERE, flags)
    with pytest.raises(InvalidParameter, match=message):
        link.__enter__()
    assert not link.running


def test_a_link_that_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    link = LinkProcess(NOWHERE, [])
    link._command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(LocalError, match=r"^the link did not start: no such thing$"):
        link.__enter__()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_links(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        link = int(process.stdout.readline())
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, b"")
    with pytest.raises(ProcessLookupError):
        os.kill(link, 0)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not its child")
def test_links_end_with_a_process_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        link = os.pidfd_open(int(process.stdout.readline()))
        try:
            process.kill()
            assert select.select([link], [], [], 60)[0] == [link]
        finally:
            os.close(link)


def test_what_runs_apart_returns_and_raises() -> None:
    async def works() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    async def fails() -> None:
        raise InvalidParameter("wrong")

    assert run_apart(works()) == "pilotfish-bench"
    with pytest.raises(InvalidParameter, match="wrong"):
        run_apart(fails())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs_apart_in_order(number: signal.Signals) -> None:
    closed = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what it does to close is not disturbed
            closed.append(True)

    with signals.raising(), pytest.raises(signals.Stopped) as stopped:
        run_apart(main())
    assert stopped.value.exit_code == 128 + number
    assert closed == [True]


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors"
)
def test_device_and_verifier_are_apart() -> None:
    before = os.sched_getaffinity(0)
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    try:
        with pinned() as pins:
            assert (pins.verifier, pins.device) == (min(before), max(before))
            assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id or 0) == {pins.device}
            show = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
            with pins.starting_verifier():
                assert int(subprocess.check_output(show)) == pins.verifier
            assert int(subprocess.check_output(show)) == pins.device
        assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id or 0) == before
    finally:
        done.set()
        thread.join()


def test_one_processor_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with pytest.raises(LocalError, match=r"^--pin needs two processors, this process may use 1$"), pinned():
        pass
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(LocalError, match=r"^--pin: this system"), pinned():
        pass


def test_where_it_was_measured() -> None:
    facts = machine()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert {"pilotfish", "numpy", "grpcio"} <= set(facts)
