"""``pilotfish chat``: a conversation on a terminal, or line by line where there is none."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from pilotfish.chat_screen import Screen
from pilotfish.client import Client, Stream
from pilotfish.client_options import add_client_options, settled
from pilotfish.output import note, show
from pilotfish.result import Piece
from pilotfish.sampling_options import add_sampling_options, params_of
from pilotfish.signals import Stopped
from pilotfish_core.drafts import FinishReason
from pilotfish_core.errors import InvalidParameter, InvalidRequest, LocalError, PilotfishError
from pilotfish_core.modes import Arm

MAX_TOKENS: Final = 1024  # of an answer, where nobody says otherwise
MAX_LINE: Final = 1024 * 1024  # characters
INTERRUPTED: Final = 130


def add_chat_parser(commands: Any) -> None:
    """Add ``chat`` to the subcommands."""
    parser = commands.add_parser(
        "chat",
        help="talk to the verifier's model, with the drafts shown ahead in grey",
        description="A conversation: each line is a message. On a terminal the draft is shown in grey ahead of the "
        "text that the verifier has decided. Ctrl-C ends an answer and keeps what there is of it, twice the "
        "conversation, as Ctrl-D does.",
    )
    add_client_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="the conversation's first message, of the system")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up an answer after that long")
    sampling = parser.add_argument_group("sampling")
    add_sampling_options(sampling, logprobs=False, max_tokens=MAX_TOKENS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the end of the input. Returns the exit code. Raises PilotfishError."""
    params = {"max_tokens": MAX_TOKENS} | params_of(arguments)
    if sys.stdin is None:
        raise InvalidParameter("there is nothing to read messages from: standard input is closed")
    options = settled(arguments)
    with Client(arguments.server, **options) as client:
        client.prepare()
        stands = arguments.on_reconnect == "keep" or arguments.cloud == "never" or arguments.arm == Arm.DEVICE_ONLY
        conversation = Conversation(client, params, arguments.timeout, verbose=arguments.verbose, stands=stands)
        if arguments.system is not None:
            conversation.messages.append({"role": "system", "content": arguments.system})
        return conversation.run()


class Conversation:
    """The messages so far, and what is done with each line."""

    def __init__(
        self,
        client: Client,
        params: Mapping[str, Any],
        timeout_s: float | None,
        *,
        verbose: bool,
        stands: bool = False,
    ) -> None:
        """``stands``: unverified text is not going to be replaced."""
        self.messages: list[dict[str, str]] = []
        self._client, self._params, self._timeout_s = client, params, timeout_s
        self._verbose = verbose
        self._stands = stands
        self._terminal = sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()
        if self._terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives input() its editing

    def run(self) -> int:
        """Until the input ends or Ctrl-C comes twice in a row."""
        interrupted = False
        while True:
            try:
                line = self._line()
                if line is None:
                    return 0
                if line.strip():
                    interrupted = self._answer(line)
            except Stopped as stop:
                if stop.exit_code != INTERRUPTED or interrupted or not self._terminal:
                    raise
                interrupted = True
                show("\n")
                note("(Ctrl-C once more, or Ctrl-D, ends the conversation)")

    def _line(self) -> str | None:
        """The next message; None at the end. Raises LocalError for what is no text."""
        try:
            if self._terminal:
                return input("> ")
            line = sys.stdin.readline(MAX_LINE + 1)
        except EOFError:
            show("\n")
            return None
        except UnicodeDecodeError:
            raise LocalError("standard input is not UTF-8") from None
        if len(line) > MAX_LINE:
            raise InvalidParameter(f"a message is longer than {MAX_LINE} characters")
        return line.removesuffix("\n") if line else None

    def _answer(self, line: str) -> bool:
        """Ask and show. Returns whether Ctrl-C ended the answer. On a terminal an error is told, and the message
        forgotten.
        """
        asked = [*self.messages, {"role": "user", "content": line}]
        try:
            stream = self._client.chat(asked, timeout_s=self._timeout_s, **self._params)
            text, stopped = self._follow(stream)
        except PilotfishError as error:
            if not self._terminal or isinstance(error, LocalError) or _hopeless(error):
                raise
            note(f"pilotfish: {error}")
            return False
        self.messages = [*asked, {"role": "assistant", "content": text}]
        return stopped

    def _follow(self, stream: Stream) -> tuple[str, bool]:
        if not self._terminal:
            for piece in stream:  # what was written cannot be taken back
                show(piece.text if self._stands else piece.verified_text)
            show("\n")
            return stream.result.text, False
        view = _View(stream, stands=self._stands)
        stopped = False
        try:
            stream.watch(view.seen)
        except Stopped as stop:
            if stop.exit_code != INTERRUPTED:
                raise
            stopped = True
            stream.cancel()
        finally:
            show(view.screen.end())
        result = stream.result
        note(view.summary(result.finish_reason))
        return result.text, stopped


class _View:
    """One answer on the terminal."""

    def __init__(self, stream: Stream, *, stands: bool) -> None:
        coloured = "NO_COLOR" not in os.environ
        self.screen = Screen(shutil.get_terminal_size().columns, coloured=coloured)
        self._stream = stream
        self._stands = stands
        self._tokens = 0
        self._began = time.monotonic()

    def seen(self, piece: Piece | None) -> None:
        """A piece came, or some time passed."""
        text = ""
        if piece is not None and (piece.verified or self._stands):
            self._tokens += len(piece.token_ids)
            text = piece.text if self._stands else piece.verified_text
        ahead = "" if self._stands else self._stream.unverified_text  # in grey, until it is verified
        show(self.screen.frame(text, ahead + self._stream.draft_text, self._status()))

    def summary(self, reason: FinishReason) -> str:
        """What is left of the figures when the answer is whole."""
        return f"[{reason}; {self._status()}]"

    def _status(self) -> str:
        elapsed = max(time.monotonic() - self._began, 1e-3)
        policy = self._stream.policy
        arm = "offline" if self._stream.offline else str(policy.get("arm", ""))
        parts = [f"{self._tokens} tokens", f"{self._tokens / elapsed:.1f} tokens/s", arm]
        if isinstance(policy.get("acceptance"), float):
            parts.append(f"{policy['acceptance']:.0%} of drafts accepted")
        if isinstance(policy.get("round_trip_ms"), float):
            parts.append(f"RTT {policy['round_trip_ms']:.1f} ms")
        return ", ".join(part for part in parts if part)


def _hopeless(error: PilotfishError) -> bool:
    """Whether no other message would be answered either."""
    return isinstance(error, InvalidRequest) and "no chat template" in str(error)
