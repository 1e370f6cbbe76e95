"""``pilotfish generate``: arguments and output. The work is the client's."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from typing import Any, Final

from pilotfish.client import Client, Stream
from pilotfish.files import check_replaceable, read_prompt
from pilotfish.output import note, show
from pilotfish.result import Result
from pilotfish.signals import Stopped, held
from pilotfish.trace_file import tracing
from pilotfish_core.drafts import FinishReason, TokenLogprobs
from pilotfish_core.errors import FileFormatError, InvalidParameter, LocalError
from pilotfish_core.modes import Arm, Hint, Objective
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.trace import TraceWriter

_NUMBERS: Final = {
    "max_tokens": int,
    "min_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}
# Fields of SamplingParams by their option's name; an option that was not given is not in the namespace.
_SAMPLING: Final = {name: name for name in _NUMBERS} | {
    "logit_bias": "logit_bias",
    "seed": "seed",
    "stop": "stop",
    "stop_token_id": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "logprobs": "logprobs",
}


def add_generate_parser(commands: Any) -> None:
    """Add ``generate`` to the subcommands."""
    parser = commands.add_parser(
        "generate",
        help="generate text with a verifier",
        description="Generate text: the verifier decides every token, a drafter on this device makes it faster.",
    )
    parser.add_argument("--server", help="ADDR[,ADDR...] of verifiers; later ones take over")
    parser.add_argument("--draft", default="auto", help="exported folder, 'ngram', 'auto' (default) or 'none'")
    parser.add_argument("--tokenizer", help="folder or tokenizer.json (default: the draft's, else the verifier's)")
    parser.add_argument("--model", default="", help="name of the served model (default: the only one)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt")
    source.add_argument("--prompt-file", metavar="F", help="file with the prompt; '-' for standard input")
    source.add_argument("--resume", metavar="F", help="go on with a generation saved by --save, as it was begun")
    _add_sampling(parser.add_argument_group("sampling", "fixed when a generation begins, not to be given to --resume"))
    _add_policy(parser.add_argument_group("policy", "who drafts, and what the choice is to make the best of"))
    _add_security(parser.add_argument_group("security"))
    parser.add_argument(
        "--window",
        type=int,
        default=16,
        help="at most so many draft tokens ahead of the last known commit (default: 16)",
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after that long")
    parser.add_argument("--allow-other-fingerprint", action="store_true", help="resume under other numerics too")
    parser.add_argument(
        "--trace", metavar="F", help="write there when what happened, without text, for pilotfish-sim calibrate"
    )
    parser.add_argument("--save", metavar="F", help="save the generation there, whether it ends or not")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.set_defaults(run=run)


def _add_security(group: Any) -> None:
    group.add_argument(
        "--api-key", metavar="KEY", help="(default: $PILOTFISH_API_KEY, which other users of this machine cannot see)"
    )
    group.add_argument("--ca", metavar="F", help="authorities to trust instead of the usual ones, PEM (grpcs://)")
    group.add_argument("--cert", metavar="F", help="this device's certificate for mutual TLS, PEM")
    group.add_argument("--key", metavar="F", help="its private key, PEM")
    group.add_argument("--pad", action="store_true", help="pad frames to size classes, both ways: sizes leak text")
    group.add_argument("--insecure", action="store_true", help="send the key unencrypted to other machines, too")


def _add_policy(group: Any) -> None:
    group.add_argument("--arm", default="auto", choices=[arm.value for arm in Arm], help="who drafts (default: auto)")
    group.add_argument(
        "--objective",
        default="latency",
        choices=[objective.value for objective in Objective],
        help="what auto makes the best of (default: latency)",
    )
    group.add_argument("--battery-low", action="store_true", help="hint: the device should not compute much")
    group.add_argument("--metered", action="store_true", help="hint: bytes cost money")
    group.add_argument("--prefer-fast", action="store_true", help="hint: speed above all, whatever the other hints say")
    group.add_argument(
        "--cloud", default="auto", choices=["auto", "never"], help="never: send nothing, the draft model writes alone"
    )
    group.add_argument("--verbose", action="store_true", help="tell the policy's choices and the numbers behind them")


def _add_sampling(group: Any) -> None:
    absent: Any = argparse.SUPPRESS
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    for name, kind in _NUMBERS.items():
        option, shown = f"--{name.replace('_', '-')}", f"(default: {defaults[name]})"
        group.add_argument(option, type=kind, default=absent, help=shown)
    group.add_argument(
        "--logit-bias", metavar="JSON", default=absent, help="mapping of token id to bias, such as '{\"42\": -100}'"
    )
    group.add_argument("--seed", type=int, default=absent, help="(default: a random one, reported)")
    group.add_argument("--stop", action="append", default=absent, metavar="TEXT", help="stop string; repeatable")
    group.add_argument("--stop-token-id", action="append", type=int, default=absent, metavar="ID", help="repeatable")
    group.add_argument("--ignore-eos", action="store_true", default=absent, help="go on after an end token")
    group.add_argument(
        "--logprobs", type=int, default=absent, metavar="K", help="log probabilities of the K best tokens (with --json)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Generate or resume, print, save. Returns the exit code. Raises PilotfishError."""
    if arguments.resume is not None:
        _check_resume(arguments)
    prompt = None if arguments.resume is not None else _prompt(arguments)
    params = _params(arguments)
    if arguments.save is not None:
        check_replaceable("--save", arguments.save)
    if arguments.server is None and arguments.cloud != "never" and arguments.arm != Arm.DEVICE_ONLY:
        raise InvalidParameter("give the verifier's address: --server ADDR (or --cloud never, to write without one)")
    if arguments.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("pilotfish.policy").setLevel(logging.INFO)
    with tracing(arguments.trace) as trace:
        return _generate(arguments, prompt, params, trace)


def _generate(
    arguments: argparse.Namespace, prompt: str | None, params: dict[str, Any], trace: TraceWriter | None
) -> int:
    client = Client(
        arguments.server,
        draft=arguments.draft,
        arm=arguments.arm,
        objective=arguments.objective,
        hint=Hint(arguments.battery_low, arguments.metered, arguments.prefer_fast),
        cloud=arguments.cloud,
        tokenizer=arguments.tokenizer,
        model=arguments.model,
        window=arguments.window,
        allow_other_fingerprint=arguments.allow_other_fingerprint,
        api_key=arguments.api_key,
        ca=arguments.ca,
        cert=arguments.cert,
        key=arguments.key,
        insecure=arguments.insecure,
        pad=arguments.pad,
        trace=None if trace is None else trace.client(arguments.arm),
    )
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
        for piece in stream:
            logprobs.extend(piece.logprobs or ())
            if not arguments.json:
                show(piece.text)
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
        note(_summary(document["metrics"], result.finish_reason))


def _summary(metrics: dict[str, Any], reason: FinishReason) -> str:
    alone = metrics["policy"].get("arm") == Arm.DEVICE_ONLY
    how = "unverified" if alone else f"{metrics['mean_acceptance_length']:.2f} tokens a step"
    return (
        f"[{reason}; {metrics['completion_tokens']} tokens, {metrics['tokens_per_s']:.1f} tokens/s, "
        f"{how}, seed {metrics['seed']}]"
    )


def _check_resume(arguments: argparse.Namespace) -> None:
    """Raises InvalidParameter for options that would change what the saved generation is."""
    options = [f"--{name.replace('_', '-')}" for name in _SAMPLING if hasattr(arguments, name)]
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


def _params(arguments: argparse.Namespace) -> dict[str, Any]:
    params = {field: getattr(arguments, name) for name, field in _SAMPLING.items() if hasattr(arguments, name)}
    if "logit_bias" in params:
        try:
            params["logit_bias"] = json.loads(arguments.logit_bias)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"--logit-bias is not JSON: {error}") from None
        if not isinstance(params["logit_bias"], dict):
            raise InvalidParameter.of("--logit-bias", arguments.logit_bias, "a JSON object of token id to bias")
    return params
