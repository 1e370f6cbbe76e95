"""``pilotfish chat`` with a scripted verifier: lines in and out, and a terminal on which Ctrl-C is pressed."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from pilotfish import chat_command, cli
from pilotfish.client import Client
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import FileFormatError, PromptTooLong
from pilotfish_core.messages import Opened
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from tests.device.verifiers import LENGTH, TOKENIZER, Script, ScriptedStream, ScriptedTransport, ids, opened

TEMPLATE: Final = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
PATIENCE_S: Final = 120.0
AGAIN_S: Final = 5.0


class Chatty(ScriptedTransport):
    """Knows a template."""

    async def fetch_chat_template(self, model: str) -> pb.ChatTemplate:
        return pb.ChatTemplate(source=TEMPLATE)


async def echoes(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    """Answers with the prompt that it was given."""
    yield opened()
    prompt = stream.opening.prompt
    yield Commit(position=len(prompt), tokens=prompt, finish=LENGTH)


async def goes_on(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    """Echoes, and does not end where it is asked to wait."""
    yield opened()
    prompt = stream.opening.prompt
    waits = TOKENIZER.decode(prompt).endswith("u:wait;")
    yield Commit(position=len(prompt), tokens=ids("well") if waits else prompt, finish=None if waits else LENGTH)


async def fails(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    yield opened()
    raise FileFormatError("broken")  # which is not tried again


async def limited(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    """Refuses the message "one"."""
    if TOKENIZER.decode(stream.opening.prompt).endswith("u:one;"):
        raise PromptTooLong("that is too long")
    async for message in echoes(stream):
        yield message


def client_of(*scripts: Script) -> Any:
    def client(server: str, **options: Any) -> Client:
        made = Client(server, **options | {"draft": None, "tokenizer": TOKENIZER})
        made._client._transport = made._client._chat._transport = Chatty(*scripts)
        return made

    return client


# In a process of its own: standard streams and signals are real.
ALONE = """
import sys
from pilotfish import chat_command, cli
from tests.device import test_chat_command as here
chat_command.Client = here.client_of(getattr(here, sys.argv[1]))
sys.exit(cli.main(["chat", "--verifier", "scripted:1", *sys.argv[2:]]))
"""


def plain(script: str, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE, script, *arguments],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_line_by_line_without_a_terminal() -> None:
    done = plain("echoes", "one\n\ntwo\n", "--system", "be kind")
    assert (done.returncode, done.stderr) == (0, "")
    first = "s:be kind;u:one;"
    assert done.stdout == f"{first}\n{first}a:{first};u:two;\n"


def test_an_error_ends_it_where_nobody_sees() -> None:
    done = plain("fails", "one\ntwo\n")
    assert done.returncode == 1
    assert done.stderr == "pilotfish: broken\n"


def test_a_model_without_a_template(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def none(self: Chatty, model: str) -> pb.ChatTemplate:
        return pb.ChatTemplate()

    monkeypatch.setattr(Chatty, "fetch_chat_template", none)
    monkeypatch.setattr(chat_command, "Client", client_of(echoes))
    with open(os.devnull) as nothing, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        assert cli.main(["chat", "--verifier", "scripted:1"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", _Lines(["hello\n"]))
        assert cli.main(["chat", "--verifier", "scripted:1"]) == 1
    assert "has no chat template" in capsys.readouterr().err


class _Lines:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def isatty(self) -> bool:
        return False

    def readline(self, size: int = -1) -> str:
        return self._lines.pop(0) if self._lines else ""


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, script: str) -> None:
        master, slave = pty.openpty()
        self._master = master
        self.process = subprocess.Popen(
            [sys.executable, "-c", ALONE, script],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )
        os.close(slave)
        self.seen = ""
        self._taken = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self, until: str) -> None:
        """Presses Ctrl-C, again after a while: one that comes just before input() waits is noticed with the next."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.process.send_signal(signal.SIGINT)
            if select.select([self._master], [], [], AGAIN_S)[0]:
                break
        self.until(until)

    def until(self, part: str) -> None:
        """Reads until ``part`` has come, behind what was waited for before; "" for the end."""
        deadline = time.monotonic() + PATIENCE_S
        while not part or part not in self.seen[self._taken :]:
            ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{part!r} did not come in time: {self.seen[self._taken :]!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other end is closed
                data = b""
            if not data and not part:
                return
            assert data, f"the process ended before {part!r}: {self.seen[self._taken :]!r}"
            self.seen += data.decode()
        self._taken = self.seen.index(part, self._taken) + len(part)

    def close(self) -> int:
        code = self.process.wait(timeout=PATIENCE_S)
        os.close(self._master)
        return code


def test_ctrl_c_keeps_what_there_is_and_twice_ends() -> None:
    terminal = Terminal("goes_on")
    try:
        terminal.until("> ")
        terminal.type("wait\n")
        terminal.until("well")
        terminal.until("tokens/s")
        terminal.interrupt("[abort; 4 tokens")
        terminal.until("> ")
        terminal.type("go on\n")
        terminal.until("u:wait;a:well;u:go on;")
        terminal.until("[length; ")
        terminal.until("> ")
        terminal.interrupt("once more")
        terminal.until("> ")
        terminal.interrupt("")
        assert terminal.close() == 130
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_ctrl_d_ends_it() -> None:
    terminal = Terminal("echoes")
    try:
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_an_error_on_a_terminal_is_told_and_the_message_forgotten() -> None:
    terminal = Terminal("limited")
    try:
        terminal.until("> ")
        terminal.type("one\n")
        terminal.until("pilotfish: that is too long")
        terminal.until("> ")
        terminal.type("two\n")
        terminal.until("u:two;")
        assert "u:one;" not in terminal.seen
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
