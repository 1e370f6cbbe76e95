"""What a signal does to a command, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pilotfish
from pilotfish import signals

SCRIPT = """
import sys, time
from pathlib import Path
from pilotfish import cli, signals

def run(_):
    try:
        with signals.held():
            print("begun", flush=True)
            time.sleep(0.5)
            Path(sys.argv[1]).write_text("whole")
        time.sleep(60)
    finally:
        Path(sys.argv[2]).touch()

class Parser:
    def parse_args(self, argv):
        class Arguments: pass
        Arguments.run = staticmethod(run)
        return Arguments

cli._parser = Parser
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_ends_a_command_in_order(number: signal.Signals, tmp_path: Path) -> None:
    """What is held is finished, what is open is closed, and nothing is said."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "held"), str(tmp_path / "closed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert (tmp_path / "held").read_text() == "whole"
    assert (tmp_path / "closed").exists()


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raising():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def stopped() -> None:
        with signals.raising():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(signals.Stopped) as stop:
        stopped()
    assert stop.value.exit_code == 143
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("module", ["argparse", "numpy", "grpc", "pilotfish.client"])
def test_ctrl_c_while_the_command_is_loading(module: str) -> None:
    code = f"""
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Interrupting())
from pilotfish import cli
sys.exit(cli.main(["--help"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    code = "import sys, pilotfish.cli; print('grpc' in sys.modules, 'numpy' in sys.modules, len(dir(pilotfish)) > 12)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False True\n"
    assert all(getattr(pilotfish, name) is not None for name in pilotfish.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        pilotfish.nothing  # noqa: B018
