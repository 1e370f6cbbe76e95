"""A command that is killed without a chance to tidy up leaves no verifier behind."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest

from tests.e2e.conftest import TARGET

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not its child"),
]

PATIENCE_S = 200.0
COMMAND = """
import sys, threading
from pathlib import Path
from pilotfish.demo.stage import VerifierProcess

with VerifierProcess(Path(sys.argv[1])) as verifier:
    print(verifier.pid, flush=True)
    if sys.argv[2] == "ready":
        verifier.wait_ready()
        print("ready", flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize("when", ["loading", "ready"])
def test_a_verifier_ends_with_a_command_that_is_killed(when: str) -> None:
    command = [sys.executable, "-c", COMMAND, str(TARGET), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        verifier = os.pidfd_open(int(process.stdout.readline()))
        try:
            if when == "ready":
                assert process.stdout.readline() == b"ready\n"
            process.kill()
            assert select.select([verifier], [], [], PATIENCE_S)[0] == [verifier]
        finally:
            os.close(verifier)


def test_a_verifier_of_ones_own_does_not_mind_its_standard_input() -> None:
    """An operator may well start it with none."""
    command = [sys.executable, "-m", "pilotfish_cloud", "serve", str(TARGET), "--json", "--port=0", "--http-port=0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b'"event": "ready"' in process.stdout.readline()
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
