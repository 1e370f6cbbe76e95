"""``pilotfish``: the device's command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilotfish_core.drafts import FinishReason
from pilotfish_core.errors import InvalidParameter, PilotfishError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would log comes back as our own error
    if argv[:1] == ["serve"]:
        return _serve(argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except PilotfishError as error:
        print(f"pilotfish: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # nobody reads any more; what Python flushes at exit must not complain about it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    from pilotfish.demo.command import add_demo_parser
    from pilotfish.export.command import add_export_parser

    parser = argparse.ArgumentParser(
        prog="pilotfish", description="Speculative decoding between this device and a cloud verifier."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_demo_parser(commands)
    _add_generate_parser(commands)
    add_export_parser(commands)
    commands.add_parser("serve", help="(the verifier's command is pilotfish-cloud serve)", add_help=False)
    return parser


def _serve(arguments: Sequence[str]) -> int:
    """Not ours. The parser only lists it: what begins with a flag it would not leave to a command."""
    rest = " ".join(part.removeprefix("--model=") for part in arguments if part != "--model")
    print(f"pilotfish: did you mean: pilotfish-cloud serve {rest}".rstrip(), file=sys.stderr)
    return 2


def _add_generate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="generate text with a verifier",
        description="Generate text: the verifier decides every token, a drafter on this device makes it faster.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--server", required=True, help="ADDR[,ADDR...] of verifiers; later ones take over")
    parser.add_argument("--draft", default="auto", help="exported folder, 'ngram', 'auto' or 'none'")
    parser.add_argument("--tokenizer", help="folder or tokenizer.json (default: the draft's, else the verifier's)")
    parser.add_argument("--model", default="", help="name of the served model (default: the only one)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt")
    source.add_argument("--prompt-file", metavar="F", help="file with the prompt; '-' for standard input")
    source.add_argument("--resume", metavar="F", help="go on with a generation saved by --save")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--min-tokens", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--presence-penalty", type=float, default=0.0)
    parser.add_argument("--frequency-penalty", type=float, default=0.0)
    parser.add_argument("--logit-bias", metavar="JSON", help="mapping of token id to bias, such as '{\"42\": -100}'")
    parser.add_argument("--seed", type=int, help="(default: a random one, reported)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop string; repeatable")
    parser.add_argument("--stop-token-id", action="append", type=int, default=[], metavar="ID")
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument(
        "--logprobs", type=int, metavar="K", help="log probabilities of the K best tokens (with --json)"
    )
    parser.add_argument("--window", type=int, default=8, help="draft tokens ahead of the last known commit")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after that long")
    parser.add_argument("--allow-other-fingerprint", action="store_true", help="resume under other numerics too")
    parser.add_argument("--save", metavar="F", help="save the generation there, whether it ends or not")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from pilotfish.client import Client

    prompt = None if arguments.resume else _prompt(arguments)
    if arguments.save and not Path(arguments.save).absolute().parent.is_dir():
        raise InvalidParameter(f"--save {arguments.save}: there is no folder {Path(arguments.save).absolute().parent}")
    client = Client(
        arguments.server,
        draft=arguments.draft,
        tokenizer=arguments.tokenizer,
        model=arguments.model,
        window=arguments.window,
        allow_other_fingerprint=arguments.allow_other_fingerprint,
    )
    with client:
        if prompt is None:
            stream = client.resume(arguments.resume, timeout_s=arguments.timeout)
        else:
            stream = client.generate(prompt, timeout_s=arguments.timeout, **_params(arguments))
        logprobs: list[Any] = []
        try:
            for piece in stream:
                logprobs.extend(piece.logprobs or ())
                if not arguments.json:
                    print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            stream.cancel()
        finally:
            if arguments.save:
                stream.generation.save(arguments.save)
        result = stream.result
        if arguments.json:
            document = result.as_dict()
            if arguments.logprobs is not None:
                document["logprobs"] = [{"chosen": entry.chosen, "top": entry.top} for entry in logprobs]
            print(json.dumps(document))
        else:
            print()
            print(_summary(result.as_dict()["metrics"], result.finish_reason), file=sys.stderr)
    return 130 if result.finish_reason is FinishReason.ABORT else 0


def _summary(metrics: dict[str, Any], reason: FinishReason) -> str:
    return (
        f"[{reason}; {metrics['completion_tokens']} tokens, {metrics['tokens_per_s']:.1f} tokens/s, "
        f"{metrics['mean_acceptance_length']:.2f} tokens a step, seed {metrics['seed']}]"
    )


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    name = arguments.prompt_file
    if name is None:
        raise InvalidParameter("give a prompt: --prompt TEXT, --prompt-file F (or '-'), or --resume F")
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"--prompt-file {name} cannot be read: {error}") from None


def _params(arguments: argparse.Namespace) -> dict[str, Any]:
    params = {
        name: getattr(arguments, name)
        for name in (
            "max_tokens",
            "min_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "stop",
            "ignore_eos",
            "logprobs",
        )
    }
    params["stop_token_ids"] = arguments.stop_token_id
    if arguments.logit_bias is not None:
        try:
            params["logit_bias"] = json.loads(arguments.logit_bias)
        except ValueError as error:
            raise InvalidParameter(f"--logit-bias is not JSON: {error}") from None
        if not isinstance(params["logit_bias"], dict):
            raise InvalidParameter.of("--logit-bias", arguments.logit_bias, "a JSON object of token id to bias")
    return params
