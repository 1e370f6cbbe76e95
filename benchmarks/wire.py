"""Bytes on the wire: payload and socket, per committed token, per draft token and per commit.

    python -m benchmarks.wire [--json OUT] [--vocab 4096 151936] [--windows 4 8 16] [--max-tokens 96]

A real client talks to a real verifier process (the reference target, deterministic, bfloat16) through a TCP proxy that
counts. *Payload* is the serialised protobuf; *socket* is what TCP carried, HTTP/2 framing, gRPC headers and trailers
included, IP and TCP headers not. Draft payload is all bytes of the frames that carry drafts (branch, start and
acknowledgements that ride along included) per draft token in them. Open and Opened, and the socket bytes up to
Opened, are reported apart. Connections are open before the first answer, as an app's are.

The large vocabulary is the reference pair with its ids spread over 151,936 (id * 37 + 23, so that low ids stay the
frequent ones, as in real tokenizers), made in a temporary folder (see ``benchmarks.spread_model``). The rows between
score far below the rest, so no filler id is ever chosen; the benchmark checks that.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.cutting_proxy import CuttingProxy
from benchmarks.spread_model import FIRST, LARGE_VOCABULARY, STRIDE, spread_model
from benchmarks.wire_tally import tallied_client
from pilotfish.bench.machine import machine
from pilotfish.client import AsyncClient, AsyncStream
from pilotfish.demo.stage import VerifierProcess, find_reference
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish.export import export_model
from pilotfish_core.drafter import Drafter

BARS: Final = {"draft bytes per draft token": 4.0, "bytes per commit": 12.0}
SMALL_VOCABULARY: Final = 4_096
PROMPTS: Final = (
    'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n',
    "import os\nimport sys\n\n\ndef main(argv=None):\n",
    "import unittest\n\n\nclass TestStringMethods(unittest.TestCase):\n\n    def test_upper(self):\n",
)


async def answer(client: AsyncClient, prompt: Sequence[int], **params: Any) -> AsyncStream:
    """One whole answer, its stream closed, so that all its bytes have been counted."""
    stream = await client.generate(prompt, **params)
    await stream.result()
    await stream._task
    return stream


async def measure_model(
    name: str, target: Path, draft: Path, windows: Sequence[int], max_tokens: int
) -> list[dict[str, Any]]:
    """All cells of one vocabulary."""
    params = {"max_tokens": max_tokens, "temperature": 0.8, "seed": 7, "ignore_eos": True}
    cells: list[dict[str, Any]] = []
    with VerifierProcess(target, "--dtype", "bfloat16", "--deterministic") as verifier:
        await asyncio.to_thread(verifier.wait_ready)
        async with CuttingProxy(verifier.address) as proxy:
            expected: list[list[int]] = []
            vocabulary = 0
            drafters: list[tuple[str, int]] = [("none", 0)]
            drafters += [(kind, window) for kind in ("ngram", "onnx-int8", "oracle 0.8") for window in windows]
            for kind, window in drafters:
                chosen: str | Path | Drafter | None = {"none": None, "ngram": "ngram", "onnx-int8": draft}.get(kind)
                if kind.startswith("oracle"):
                    chosen = OracleDrafter(expected, vocab_size=vocabulary, accuracy=0.8)
                arm = "cloud" if kind == "none" else "device-async"
                client, transport = tallied_client(
                    proxy, draft=chosen, arm=arm, tokenizer=target, window=max(window, 1)
                )
                async with client:
                    await client.prepare()
                    await transport.describe()  # opens the connection
                    vocabulary = client.tokenizer.vocab_size
                    for index, prompt in enumerate(PROMPTS):
                        ids = client.tokenizer.encode(prompt)
                        stream = await answer(client, ids, **params)
                        transport.tally.answers += 1
                        whole = [*ids, *stream.generation.output]
                        if not expected or index == len(expected):
                            expected.append(whole)
                        if whole != expected[index]:
                            raise RuntimeError(f"{name}, {kind}, window {window}: the text changed")
                    chosen_ids = {token for whole in expected for token in whole}
                    if vocabulary > SMALL_VOCABULARY and any(token % STRIDE != FIRST for token in chosen_ids):
                        raise RuntimeError("a filler id was chosen")
                cells.append(
                    {
                        "vocabulary": vocabulary,
                        "drafter": kind,
                        "window": window,
                        **transport.tally.figures(),
                        "tally": dataclasses.asdict(transport.tally),
                    }
                )
                print(row(cells[-1]), flush=True)
    return cells


COLUMNS: Final = (
    ("vocab", "vocabulary", 0),
    ("drafter", "drafter", 0),
    ("window", "window", 0),
    ("tok/commit", "tokens_per_commit", 2),
    ("drafts/br", "draft_tokens_per_branch", 1),
    ("B/draft", "draft_bytes_per_draft_token", 2),
    ("B/commit", "bytes_per_commit", 2),
    ("up B/tok", "payload_up_per_committed_token", 1),
    ("dn B/tok", "payload_down_per_committed_token", 1),
    ("sock up/dr", "socket_up_per_draft_token", 1),
    ("sock up/tok", "socket_up_per_committed_token", 1),
    ("sock dn/tok", "socket_down_per_committed_token", 1),
    ("sock dn/cmt", "socket_down_per_commit", 1),
)


def row(cell: dict[str, Any]) -> str:
    """A line of the table."""
    return "".join(
        f"{cell[key]:>12.{digits}f}" if isinstance(cell[key], float) else f"{cell[key]!s:>12}"
        for _, key, digits in COLUMNS
    )


def over_bar(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Cells of the large vocabulary that miss a bar."""
    missed = []
    for cell in cells:
        if cell["vocabulary"] <= SMALL_VOCABULARY:
            continue
        for key, bar in (("draft_bytes_per_draft_token", 4.0), ("bytes_per_commit", 12.0)):
            if cell[key] > bar:
                missed.append(f"{cell['drafter']} window {cell['window']}: {key} {cell[key]:.2f} > {bar:g}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    parser.add_argument("--vocab", type=int, nargs="+", default=[SMALL_VOCABULARY, LARGE_VOCABULARY])
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--max-tokens", type=int, default=96)
    given = parser.parse_args()
    command = shlex.join(["python", "-m", "benchmarks.wire", *sys.argv[1:]])
    where = machine()
    print(command)
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    print("".join(f"{title:>12}" for title, _, _ in COLUMNS))
    reference = find_reference(None)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pilotfish-wire-") as folder:
        work = Path(folder)
        for vocabulary in given.vocab:
            pair = reference
            if vocabulary > SMALL_VOCABULARY:
                pair = work / f"spread-{vocabulary}"
                for part in ("target", "draft"):
                    spread_model(reference / part, pair / part, vocabulary)
            draft = work / f"exported-{vocabulary}"
            export_model(pair / "draft", draft, quant="int8", text="\n".join(PROMPTS))  # measured on little text: quick
            cells += asyncio.run(
                measure_model(str(vocabulary), pair / "target", draft, given.windows, given.max_tokens)
            )
    opening = statistics.mean(cell["opening_socket_up_per_answer"] for cell in cells)
    print(
        f"an answer's opening: payload {cells[0]['open_payload_per_answer']:.0f} bytes up, "
        f"{cells[0]['opened_payload_per_answer']:.0f} down; socket {opening:.0f} up"
    )
    missed = over_bar(cells)
    print("\n".join(["bars missed:", *missed]) if missed else f"bars met at every window: {BARS}")
    if given.json:
        report = {"command": command, "machine": where, "bars": BARS, "missed": missed, "cells": cells}
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
