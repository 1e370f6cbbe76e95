"""``pilotfish generate``: arguments and output. The work is the client's."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import Any, Final

from pilotfish.client import Client, Stream
from pilotfish.client_options import add_client_options, settled
from pilotfish.files import check_replaceable, read_prompt
from pilotfish.output import note, show
from pilotfish.result import Result
from pilotfish.sampling_options import add_sampling_options, given_options, params_of
from pilotfish.signals import Stopped, held
from pilotfish.trace_file import tracing
from pilotfish_core.drafts import FinishReason, TokenLogprobs
from pilotfish_core.errors import FileFormatError, InvalidParameter, LocalError
from pilotfish_core.modes import Arm

SAVE_EVERY_S: Final = 0.25


def add_generate_parser(commands: Any) -> None:
    """Add ``generate`` to the subcommands."""
    parser = commands.add_parser(
        "generate",
        help="generate text with a verifier",
        description="Generate text: the verifier decides every token, a drafter on this device makes it faster.",
    )
    add_client_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt")
    source.add_argument("--prompt-file", metavar="F", help="file with the prompt; '-' for standard input")
    source.add_argument("--resume", metavar="F", help="go on with a generation saved by --save, as it was begun")
    add_sampling_options(
        parser.add_argument_group("sampling", "fixed when a generation begins, not to be given to --resume")
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after that long")
    parser.add_argument(
        "--allow-other-fingerprint",
        action="store_true",
        help="resume under other numerics too, also what this device began without a verifier",
    )
    parser.add_argument(
        "--trace", metavar="F", help="write there when what happened, without text, for pilotfish-sim calibrate"
    )
    parser.add_argument(
        "--save",
        metavar="F",
        help="keep the generation there, while it runs too: a process that is killed resumes from there (--resume)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate or resume, print, save. Returns the exit code. Raises PilotfishError."""
    if arguments.resume is not None:
        _check_resume(arguments)
    prompt = None if arguments.resume is not None else _prompt(arguments)
    params = params_of(arguments)
    if arguments.save is not None:
        check_replaceable("--save", arguments.save)
    options = settled(arguments)
    with tracing(arguments.trace) as trace:
        if trace is not None:
            options["trace"] = trace.client(options["arm"])
        return _generate(arguments, prompt, params, options)


def _generate(
    arguments: argparse.Namespace, prompt: str | None, params: dict[str, Any], options: dict[str, Any]
) -> int:
    client = Client(arguments.server, allow_other_fingerprint=arguments.allow_other_fingerprint, **options)
    with client:
        if prompt is None:
            stream = client.resume(arguments.resume, timeout_s=arguments.timeout)
        else:
            stream = client.generate(prompt, timeout_s=arguments.timeout, **params)
        return _follow(stream, arguments)


def _follow(stream: Stream, arguments: argparse.Namespace) -> int:
    """Print what comes; the generation is saved however that ends."""
    logprobs: list[TokenLogprobs] = []
    stopped: KeyboardInterrupt | None = None
    saved = True
    try:
        stands = _alone(arguments) or arguments.on_reconnect == "keep"  # even what is unverified
        saver = _Saver(stream, arguments.save)
        for piece in stream:
            saver.save()
            logprobs.extend(piece.logprobs or ())
            if not arguments.json:  # what was printed cannot be taken back
                show(piece.text if stands else piece.verified_text)
    except KeyboardInterrupt as stop:
        stopped = stop
        stream.cancel()
    finally:
        if arguments.save is not None:
            with held():
                saved = _save(stream, arguments.save)
    try:
        _print(stream.result, arguments.json, logprobs if stream.generation.params.logprobs is not None else None)
        if arguments.verbose:
            note(f"policy: {json.dumps(dict(stream.result.metrics.policy))}")
    except (LocalError, OSError):  # the terminal may be gone, and SIGHUP have come of that
        if stopped is None:
            raise
    if not saved:
        return 1
    if stopped is not None:
        return stopped.exit_code if isinstance(stopped, Stopped) else 130
    return 130 if stream.result.finish_reason is FinishReason.ABORT else 0


class _Saver:
    """Keeps a file near what has come, before that is printed: a process that is killed resumes from there."""

    def __init__(self, stream: Stream, file: str | None) -> None:
        self._stream, self._file = stream, file
        self._next = 0.0
        self.save()

    def save(self) -> None:
        """Where it is time. What fails is told at the end, when it is tried again."""
        now = time.monotonic()
        if self._file is None or now < self._next:
            return
        with held(), contextlib.suppress(FileFormatError):
            self._stream.generation.save(self._file)
        self._next = now + SAVE_EVERY_S


def _save(stream: Stream, file: str) -> bool:
    """Whether it could be saved. If not, that is said, and the answer is still to be shown."""
    try:
        stream.generation.save(file)
    except FileFormatError as error:
        note(f"pilotfish: {error}")
        return False
    return True


def _print(result: Result, as_json: bool, logprobs: list[TokenLogprobs] | None) -> None:
    document = result.as_dict()
    if as_json:
        if logprobs is not None:
            document["logprobs"] = [{"chosen": entry.chosen, "top": entry.top} for entry in logprobs]
        show(json.dumps(document) + "\n")
    else:
        show("\n")
        note(_summary(document["metrics"], result.finish_reason, verified=result.verified))


def _summary(metrics: dict[str, Any], reason: FinishReason, *, verified: bool) -> str:
    how = "unverified" if not verified else f"{metrics['mean_acceptance_length']:.2f} tokens a step"
    return (
        f"[{reason}; {metrics['completion_tokens']} tokens, {metrics['tokens_per_s']:.1f} tokens/s, "
        f"{how}, seed {metrics['seed']}]"
    )


def _alone(arguments: argparse.Namespace) -> bool:
    return bool(arguments.cloud == "never" or arguments.arm == Arm.DEVICE_ONLY)


def _check_resume(arguments: argparse.Namespace) -> None:
    """Raises InvalidParameter for options that would change what the saved generation is."""
    options = given_options(arguments)
    options += ["--model"] if arguments.model else []
    if options:
        raise InvalidParameter(
            f"--resume goes on with the generation as it was begun, {', '.join(options)} cannot be given with it"
        )


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    name = arguments.prompt_file
    if name is None:
        raise InvalidParameter("give a prompt: --prompt TEXT, --prompt-file F (or '-'), or --resume F")
    if name == "-" and sys.stdin is None:
        raise InvalidParameter("--prompt-file - cannot be read: standard input is closed")
    return read_prompt(f"--prompt-file {name}", sys.stdin.buffer if name == "-" else name)
