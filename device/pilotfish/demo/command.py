"""``pilotfish demo``: the whole story in about a minute, on real models, sockets and processes."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any, Final

from pilotfish.client import Client
from pilotfish.demo.answers import Answer, answer
from pilotfish.demo.picture import draw
from pilotfish.demo.report import summary, table
from pilotfish.demo.stage import VerifierProcess, exported_draft, find_reference, inflated_target
from pilotfish.demo.terminal import BOLD, DIM, Terminal
from pilotfish.drafters.junk import JunkDrafter
from pilotfish.files import check_folder, check_replaceable
from pilotfish.output import show
from pilotfish_core.errors import PilotfishError

PROMPTS: Final = (
    'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n',
    "import os\nimport sys\n\n\ndef main(argv=None):\n",
    "import unittest\n\n\nclass TestStringMethods(unittest.TestCase):\n\n    def test_upper(self):\n",
)
SERVE_ARGUMENTS: Final = ("--dtype", "bfloat16", "--deterministic")


def add_demo_parser(commands: Any) -> None:
    """Add ``demo`` to the subcommands."""
    parser = commands.add_parser(
        "demo",
        help="watch a draft model here and two verifiers write code together, one of them killed",
        description="Start two verifiers and a device, generate, kill a verifier in mid-answer, use a junk drafter, "
        "and compare every answer with the cloud's alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--reference", metavar="DIR", help="folder of the reference pair (default: that of the clone)")
    parser.add_argument("--work-dir", metavar="DIR", help="for prepared models (default: build/demo beside it)")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens per answer")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--window", type=int, default=16, help="at most so many draft tokens ahead of the last known commit"
    )
    parser.add_argument("--quant", default="int8", choices=("int8", "int4"), help="of the draft model")
    parser.add_argument("--svg", metavar="FILE", help="draw the run as a picture")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Play the demo. Returns 0 only when every answer is the cloud's own."""
    if arguments.max_tokens < 16:
        raise PilotfishError(f"--max-tokens is {arguments.max_tokens}; the demo needs at least 16 to interrupt")
    with contextlib.ExitStack() as stack:
        terminal = Terminal(silent=arguments.json)
        reference = find_reference(arguments.reference)
        work = Path(arguments.work_dir) if arguments.work_dir else reference.parent / "build" / "demo"
        check_folder("--work-dir", work)
        if arguments.svg is not None:
            check_replaceable("--svg", arguments.svg)
        answers, failovers = _play(arguments, terminal, reference, work.resolve(), stack)
    figures = summary(answers, failovers)
    hybrid = [item for item in answers if item.kind == "hybrid"]
    alone = [item for item in answers if item.kind == "cloud"]
    terminal.heading("The first answer again, at the pace at which it came: cloud alone | hybrid")
    terminal.replay(alone[0], hybrid[0])
    terminal.say()
    for line in table(figures):
        terminal.say(line)
    terminal.say()
    terminal.say(f"SHA-256, cloud alone:                    {figures['sha256']['cloud']}")
    terminal.say(f"SHA-256, hybrid + killed verifier + junk: {figures['sha256']['others']}")
    verdict = "identical: no token changed" if figures["identical"] else "DIFFERENT: this is a defect, please report it"
    terminal.say(f"{verdict} ({figures['answers']} answers, {failovers} failover)", BOLD)
    if arguments.svg is not None:
        Path(arguments.svg).write_text(draw(alone[0], hybrid[0], figures), encoding="utf-8")
        terminal.say(f"picture: {arguments.svg}")
    if arguments.json:
        show(json.dumps(figures) + "\n")
    return 0 if figures["identical"] else 1


def _play(
    arguments: argparse.Namespace, terminal: Terminal, reference: Path, work: Path, stack: contextlib.ExitStack
) -> tuple[list[Answer], int]:
    began = time.monotonic()
    terminal.say("Preparing: inflated target, quantised draft (kept for the next time) ...", DIM)
    target, draft = inflated_target(reference, work), exported_draft(reference, work, arguments.quant)
    terminal.say("Starting two verifiers (bfloat16, deterministic) ...", DIM)
    verifiers = [VerifierProcess(target, *SERVE_ARGUMENTS) for _ in range(2)]
    for verifier in verifiers:
        stack.callback(verifier.stop)  # first: it does no harm to one that was not started
        verifier.start()
    for verifier in verifiers:
        verifier.wait_ready()
    terminal.say(f"Ready after {time.monotonic() - began:.0f} s.", DIM)
    servers = [verifier.address for verifier in verifiers]
    options = {"window": arguments.window}
    alone = stack.enter_context(Client(servers, draft=None, arm="cloud", tokenizer=draft, **options))
    hybrid = stack.enter_context(Client(servers, draft=draft, arm="device-async", **options))
    junk = stack.enter_context(Client(servers[1:], draft=JunkDrafter(alone_vocabulary(alone)), tokenizer=draft))
    how = {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "show": terminal.piece,
    }

    answers: list[Answer] = []
    terminal.heading("The cloud alone")
    for prompt in PROMPTS:
        terminal.prompt(prompt)
        answers.append(answer(alone, "cloud", prompt, **how))
        terminal.say()
    terminal.heading("The device drafts, the cloud verifies")
    terminal.legend()
    for prompt in PROMPTS:
        terminal.prompt(prompt)
        answers.append(answer(hybrid, "hybrid", prompt, **how))
        terminal.say()

    def kill() -> None:
        verifiers[0].kill()
        terminal.say(f"\n--- kill -9 {verifiers[0].address} ---", BOLD)

    terminal.heading("The same, and the verifier is killed in mid-answer")
    terminal.prompt(PROMPTS[0])
    interrupted = answer(hybrid, "failover", PROMPTS[0], **how, after_tokens=(arguments.max_tokens // 3, kill))
    answers.append(interrupted)
    terminal.say()
    terminal.heading("A drafter that proposes junk: slower, and not one token different")
    terminal.prompt(PROMPTS[1])
    answers.append(answer(junk, "junk", PROMPTS[1], **how))
    terminal.say()
    return answers, interrupted.result.metrics.reconnects


def alone_vocabulary(client: Client) -> int:
    """The vocabulary size that the junk drafter draws from."""
    client.prepare()
    return client.tokenizer.vocab_size
