"""Bytes on the wire: payload and socket, per committed token, per draft token and per commit.

    python -m benchmarks.wire [--json OUT] [--vocab 4096 151936] [--windows 4 8 16] [--max-tokens 96]

A real client talks to a real verifier process (the reference target, deterministic, bfloat16) through a TCP proxy that
counts. *Payload* is the serialised protobuf; *socket* is what TCP carried, HTTP/2 framing, gRPC headers and trailers
included, IP and TCP headers not. Draft payload is all bytes of the frames that carry drafts (branch, start and
acknowledgements that ride along included) per draft token in them. Open and Opened, and the socket bytes up to
Opened, are reported apart. Connections are open before the first answer, as an app's are.

The large vocabulary is the reference pair with its ids spread over 151,936 (id * 37 + 23, so that low ids stay the
frequent ones, as in real tokenizers), made in a temporary folder. The rows between hold a direction in which every
hidden state of the model scores far below the rest, so no filler id is ever chosen; the benchmark checks that.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pilotfish.client import AsyncClient, AsyncStream
from pilotfish.demo.stage import VerifierProcess, find_reference
from pilotfish.drafters.oracle import OracleDrafter
from pilotfish.export import export_model
from pilotfish.transport import Address, DeviceStream, Transport, parse_addresses
from pilotfish_core.drafter import Drafter
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc

BARS: Final = {"draft bytes per draft token": 4.0, "bytes per commit": 12.0}
SMALL_VOCABULARY: Final = 4_096
LARGE_VOCABULARY: Final = 151_936
STRIDE: Final = 37
FIRST: Final = 23
PROMPTS: Final = (
    'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n',
    "import os\nimport sys\n\n\ndef main(argv=None):\n",
    "import unittest\n\n\nclass TestStringMethods(unittest.TestCase):\n\n    def test_upper(self):\n",
)


class CountingProxy:
    """Forwards TCP connections to an address and counts bytes: ``up`` to it, ``down`` from it."""

    def __init__(self, address: str) -> None:
        (self._target,) = parse_addresses(address)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.up = 0
        self.down = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"grpc://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._target.host, self._target.port)
        self._writers += (writer, there_writer)
        for source, sink, upward in ((reader, there_writer, True), (there_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, upward))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, upward: bool) -> None:
        try:
            while data := await source.read(65536):
                if upward:
                    self.up += len(data)
                else:
                    self.down += len(data)
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


@dataclasses.dataclass(slots=True)
class Tally:
    """Bytes of one or more answers. ``socket_*`` leave out what came up to Opened (``opening_*``)."""

    answers: int = 0
    open_bytes: int = 0
    opened_bytes: int = 0
    draft_frames: int = 0
    draft_bytes: int = 0
    draft_tokens: int = 0
    branches: int = 0
    other_up_bytes: int = 0  # acknowledgements of their own, pings
    commits: int = 0
    commit_bytes: int = 0
    committed_tokens: int = 0
    other_down_bytes: int = 0
    opening_up: int = 0
    opening_down: int = 0
    socket_up: int = 0
    socket_down: int = 0

    def sent(self, frame: pb.DeviceFrame) -> None:
        """Count a frame of the device."""
        size = frame.ByteSize()
        tokens = draft_tokens_in(frame)
        if frame.HasField("open"):
            self.open_bytes += size
        elif tokens:
            self.draft_frames += 1
            self.draft_bytes += size
            self.draft_tokens += tokens
            self.branches += opens_branch(frame)
        else:
            self.other_up_bytes += size

    def received(self, frame: pb.CloudFrame) -> None:
        """Count a frame of the cloud."""
        size = frame.ByteSize()
        tokens = committed_tokens_in(frame)
        if frame.HasField("opened"):
            self.opened_bytes += size
        elif tokens or frame.HasField("finish"):
            self.commits += 1
            self.commit_bytes += size
            self.committed_tokens += tokens
        else:
            self.other_down_bytes += size

    @property
    def payload_up(self) -> int:
        """After Open."""
        return self.draft_bytes + self.other_up_bytes

    @property
    def payload_down(self) -> int:
        """After Opened."""
        return self.commit_bytes + self.other_down_bytes

    def figures(self) -> dict[str, float]:
        """The ratios that the bars speak of, and the others."""
        drafts, committed, commits = max(self.draft_tokens, 1), max(self.committed_tokens, 1), max(self.commits, 1)
        answers = max(self.answers, 1)
        return {
            "draft_bytes_per_draft_token": self.draft_bytes / drafts,
            "draft_tokens_per_frame": self.draft_tokens / max(self.draft_frames, 1),
            "draft_tokens_per_branch": self.draft_tokens / max(self.branches, 1),
            "draft_tokens_per_committed_token": self.draft_tokens / committed,
            "bytes_per_commit": self.commit_bytes / commits,
            "tokens_per_commit": self.committed_tokens / commits,
            "payload_up_per_committed_token": self.payload_up / committed,
            "payload_down_per_committed_token": self.payload_down / committed,
            "payload_up_per_commit": self.payload_up / commits,
            "socket_up_per_committed_token": self.socket_up / committed,
            "socket_down_per_committed_token": self.socket_down / committed,
            "socket_up_per_draft_token": self.socket_up / drafts if self.draft_tokens else 0.0,
            "socket_up_per_commit": self.socket_up / commits,
            "socket_down_per_commit": self.socket_down / commits,
            "open_payload_per_answer": self.open_bytes / answers,
            "opened_payload_per_answer": self.opened_bytes / answers,
            "opening_socket_up_per_answer": self.opening_up / answers,
            "opening_socket_down_per_answer": self.opening_down / answers,
        }


def draft_tokens_in(frame: pb.DeviceFrame) -> int:
    """How many draft tokens a frame carries."""
    return 1 if frame.HasField("token") else len(frame.tokens)


def opens_branch(frame: pb.DeviceFrame) -> bool:
    """Whether the frame's run is a branch's first."""
    return frame.HasField("branch") or frame.HasField("advance")


def committed_tokens_in(frame: pb.CloudFrame) -> int:
    """How many tokens a commit carries."""
    return 1 if frame.HasField("token") else len(frame.tokens)


class _TalliedStream(DeviceStream):
    def __init__(self, stub: pb_grpc.VerifierAsyncStub, tally: Tally, proxy: CountingProxy) -> None:
        self._tally = tally
        self._proxy = proxy
        super().__init__(stub)

    def send(self, frame: pb.DeviceFrame) -> None:
        self._tally.sent(frame)
        super().send(frame)

    async def frames(self) -> AsyncIterator[pb.CloudFrame]:
        up, down, opened = self._proxy.up, self._proxy.down, False
        try:
            async for frame in super().frames():
                self._tally.received(frame)
                if not opened:
                    opened = True
                    self._tally.opening_up += self._proxy.up - up
                    self._tally.opening_down += self._proxy.down - down
                    up, down = self._proxy.up, self._proxy.down
                yield frame
        finally:
            self._tally.socket_up += self._proxy.up - up
            self._tally.socket_down += self._proxy.down - down


class TalliedTransport(Transport):
    """A transport that counts frames in ``tally`` and, for one stream at a time, the proxy's bytes."""

    def __init__(self, addresses: tuple[Address, ...], proxy: CountingProxy) -> None:
        super().__init__(addresses)
        self._proxy = proxy
        self.tally = Tally()

    def open(self, number: int) -> DeviceStream:
        """A new stream that counts."""
        return _TalliedStream(self._stub(self.addresses[number % len(self.addresses)]), self.tally, self._proxy)


def tallied_client(proxy: CountingProxy, **options: Any) -> tuple[AsyncClient, TalliedTransport]:
    """A client whose every byte is counted."""
    client = AsyncClient(proxy.address, **options)
    transport = TalliedTransport(parse_addresses(proxy.address), proxy)
    client._transport = transport
    return client, transport


async def answer(client: AsyncClient, prompt: Sequence[int], **params: Any) -> AsyncStream:
    """One whole answer, its stream closed, so that all its bytes have been counted."""
    stream = await client.generate(prompt, **params)
    await stream.result()
    await stream._task
    return stream


def spread_model(source: Path, out: Path, vocabulary: int = LARGE_VOCABULARY) -> None:
    """Write ``source`` with its ids spread over ``vocabulary``; it computes the same, on other ids."""
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    small: int = config["vocab_size"]
    ids = [token * STRIDE + FIRST for token in range(small)]
    if ids[-1] >= vocabulary:
        raise ValueError(f"a vocabulary of {vocabulary} cannot hold ids up to {ids[-1]}")
    weights = load_file(source / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    spread = _filler_row(source).to(embedding.dtype).repeat(vocabulary, 1)
    spread[torch.tensor(ids)] = embedding
    weights["model.embed_tokens.weight"] = spread
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config["vocab_size"] = vocabulary
    for values in (config, generation := json.loads((source / "generation_config.json").read_text())):
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            if values.get(name) is not None:
                values[name] = ids[values[name]]
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    names = {ids[token]: name for name, token in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] = {names.get(token, f"<filler {token}>"): token for token in range(vocabulary)}
    for token in tokenizer["added_tokens"]:
        token["id"] = ids[token["id"]]
    (out / "config.json").write_text(json.dumps(config))
    (out / "generation_config.json").write_text(json.dumps(generation))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())


def _filler_row(source: Path) -> Any:
    """A row whose logit is far below all others: minus 100 times the direction in which the model's last hidden
    states are most nearly constant (ridge regression to 1 over some of the standard library's text; they reach 0.4).
    """
    import torch
    import transformers

    from pilotfish_core.tokenizer import Tokenizer

    transformers.utils.logging.disable_progress_bar()
    tokens = Tokenizer.load(source).encode(Path(argparse.__file__).read_text(encoding="utf-8"))[:6000]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        parts = [model.model(torch.tensor([tokens[at : at + 600]])).last_hidden_state[0] for at in range(0, 6000, 600)]
    hidden = torch.cat(parts)
    gram = hidden.T @ hidden + torch.eye(hidden.shape[1])
    return torch.linalg.solve(gram, hidden.T @ torch.ones(len(hidden))) * -100


async def measure_model(
    name: str, target: Path, draft: Path, windows: Sequence[int], max_tokens: int
) -> list[dict[str, Any]]:
    """All cells of one vocabulary."""
    params = {"max_tokens": max_tokens, "temperature": 0.8, "seed": 7, "ignore_eos": True}
    cells: list[dict[str, Any]] = []
    with VerifierProcess(target, "--dtype", "bfloat16", "--deterministic") as verifier:
        await asyncio.to_thread(verifier.wait_ready)
        async with CountingProxy(verifier.address) as proxy:
            expected: list[list[int]] = []
            vocabulary = 0
            drafters: list[tuple[str, int]] = [("none", 0)]
            drafters += [(kind, window) for kind in ("ngram", "onnx-int8", "oracle 0.8") for window in windows]
            for kind, window in drafters:
                chosen: str | Path | Drafter | None = {"none": None, "ngram": "ngram", "onnx-int8": draft}.get(kind)
                if kind.startswith("oracle"):
                    chosen = OracleDrafter(expected, vocab_size=vocabulary, accuracy=0.8)
                client, transport = tallied_client(proxy, draft=chosen, tokenizer=target, window=max(window, 1))
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


def machine() -> dict[str, Any]:
    """Where it was measured."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    import grpc

    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
    }


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
