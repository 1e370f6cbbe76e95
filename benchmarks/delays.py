"""Milliseconds that the device library and the service add to a commit.

    python -m benchmarks.delays [--streams 32] [--max-tokens 64] [--engine-thread | --engine-apart] [--no-pin]
        [--json OUT]

*Service*: from the end of a step in the engine's process to the return of gRPC's write of its commit (the bytes are
with the transport then), so many streams in one batch. *Device*: from the moment at which gRPC hands a commit's frame
to the library to the moment at which the app has the piece of text, one stream, the reference draft drafting beside it.
Server (engine's process and all) and clients are pinned to a processor each, unless ``--no-pin``. ``--engine-apart``:
the service has one for itself and the engine shares the clients', as on a machine with a processor for each. The target
is the inflated reference target (bfloat16, deterministic).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pilotfish.addresses import parse_addresses
from pilotfish.bench.machine import load, machine
from pilotfish.bench.pinning import Pins, pinned
from pilotfish.bench.prompts import PROMPTS
from pilotfish.client import AsyncClient
from pilotfish.demo.stage import exported_draft, find_reference, inflated_target
from pilotfish.transport import DeviceStream, Transport
from pilotfish_core.proto.v1 import verifier_pb2 as pb


async def serve(model: Path, engine_thread: bool, engine_on: int | None) -> None:
    """The server's process: prints its address, serves until standard input ends, prints the delays.

    ``engine_on``: the processor to which the engine's process moves once it is there.
    """
    from pilotfish_cloud.config import ServerConfig
    from pilotfish_cloud.engine.engine import EmbeddedEngine
    from pilotfish_cloud.engine.process import EngineProcess
    from pilotfish_cloud.server import VerifierServer

    config = ServerConfig(
        model=model, served_model_name="target", port=0, http_port=0, dtype="bfloat16", deterministic=True
    )
    kind = EmbeddedEngine if engine_thread else EngineProcess
    engine: EmbeddedEngine | EngineProcess = await asyncio.to_thread(kind.load, config)
    if isinstance(engine, EngineProcess) and engine_on is not None:
        for thread in os.listdir(f"/proc/{engine.pid}/task"):
            os.sched_setaffinity(int(thread), {engine_on})
    server = VerifierServer(config, engine, engine.tokenizer)
    await server.start()
    delays: list[float] = []
    if server.service is not None:
        server.service.calls.on_written = delays.append
    print(f"grpc://127.0.0.1:{server.port}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "forget":
            delays.clear()
    await server.stop()
    print(json.dumps(delays), flush=True)


class _TimedStream(DeviceStream):
    """Notes when each frame with tokens came."""

    came: list[float]

    async def frames(self) -> AsyncIterator[pb.CloudFrame]:
        loop = asyncio.get_running_loop()
        async for frame in super().frames():
            if frame.HasField("token") or frame.tokens:
                self.came.append(loop.time())
            yield frame


class _TimedTransport(Transport):
    def __init__(self, address: str) -> None:
        super().__init__(parse_addresses(address))
        self.came: list[float] = []

    def open(self, number: int, timeout_s: float | None = None, route: str = "") -> DeviceStream:
        stream = _TimedStream(self._stub(self.addresses[0]))
        stream.came = self.came
        return stream


async def device_delays(server: str, draft: Path, max_tokens: int) -> list[float]:
    """Of every commit of some answers: seconds from its frame to the last of its pieces."""
    delays: list[float] = []
    async with AsyncClient(server, draft=draft, arm="device-async") as client:
        transport = client._transport = _TimedTransport(server)
        loop = asyncio.get_running_loop()
        for prompt in PROMPTS[:8]:
            transport.came.clear()
            stream = await client.generate(prompt, max_tokens=max_tokens, temperature=0.8, seed=7, ignore_eos=True)
            async for _ in stream:
                if len(transport.came) > 0:
                    delays.append(loop.time() - transport.came[-1])
    return delays


async def load_service(server: str, streams: int, max_tokens: int) -> None:
    """So many answers at once, by the cloud alone."""
    async with AsyncClient(server, draft=None, arm="cloud") as client:

        async def one(index: int) -> None:
            prompt = PROMPTS[index % len(PROMPTS)]
            stream = await client.generate(prompt, max_tokens=max_tokens, seed=index, ignore_eos=True)
            await stream.result()

        await asyncio.gather(*(one(index) for index in range(streams)))


def percentiles(delays: Sequence[float]) -> dict[str, Any]:
    """In milliseconds."""
    ordered = sorted(delays)
    at = {name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] for name, share in SHARES.items()}
    return {"commits": len(ordered), **{name: round(value * 1e3, 3) for name, value in at.items()}}


SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}


def measure(
    model: Path,
    draft: Path,
    pins: Pins | None,
    streams: int,
    max_tokens: int,
    *,
    engine_thread: bool,
    engine_apart: bool,
) -> dict[str, Any]:
    """Both parts, against one server."""
    command = [sys.executable, "-m", "benchmarks.delays", "--serve", str(model)]
    command += ["--engine-thread"] * engine_thread
    if engine_apart and pins is not None:
        command += ["--engine-on", str(pins.device)]
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if pins is None else pins.starting_verifier():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(process.kill)
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("the server has no pipes")
        server = process.stdout.readline().strip()
        device = asyncio.run(device_delays(server, draft, max_tokens))
        asyncio.run(load_service(server, streams, 4))  # kernels for that many rows
        process.stdin.write("forget\n")
        process.stdin.flush()
        asyncio.run(load_service(server, streams, max_tokens))
        process.stdin.close()
        service: list[float] = json.loads(process.stdout.read())
    return {"device": percentiles(device), "service": {"streams": streams, **percentiles(service)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    where_engine = parser.add_mutually_exclusive_group()
    where_engine.add_argument("--engine-thread", action="store_true", help="engine and service in one process")
    where_engine.add_argument("--engine-apart", action="store_true", help="the service has a processor for itself")
    parser.add_argument("--no-pin", action="store_true", help="let all processes use all processors")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine-on", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        asyncio.run(serve(given.serve, given.engine_thread, given.engine_on))
        return
    reference = find_reference(None)
    work = reference.parent / "build" / "demo"
    target, draft = inflated_target(reference, work), exported_draft(reference, work, "int8")
    where = machine()
    with contextlib.nullcontext() if given.no_pin else pinned() as pins:
        figures = measure(
            target,
            draft,
            pins,
            given.streams,
            given.max_tokens,
            engine_thread=given.engine_thread,
            engine_apart=given.engine_apart,
        )
    for side, values in figures.items():
        print(f"{side:8}", ", ".join(f"{name} {value}" for name, value in values.items()))
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.delays", *sys.argv[1:]])
        report = {"command": command, "machine": where, "load_at_end": load(), **figures}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
