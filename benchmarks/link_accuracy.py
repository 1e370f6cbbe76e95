"""How exactly the link emulator delays: round trips through it against what it was told.

    python -m benchmarks.link_accuracy [--rtt 0 10 50 200] [--messages 200] [--json OUT]

A message of 40 bytes goes to an echo server and back, one at a time, directly and through a process of
``pilotfish-sim link``. The error is the median round trip through the link, less the median direct one, less what was
asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pilotfish.bench.link_process import LinkOptions, LinkProcess
from pilotfish.bench.machine import machine

MESSAGE = bytes(40)


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[str]:
    """A server that sends back what it gets. Yields its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the end of the measurement
            while data := await reader.read(4096):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def round_trips(address: str, messages: int) -> list[float]:
    """Milliseconds of so many round trips, after a few that do not count."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    taken = []
    for _ in range(5 + messages):
        began = time.perf_counter()
        writer.write(MESSAGE)
        await reader.readexactly(len(MESSAGE))
        taken.append((time.perf_counter() - began) * 1e3)
    writer.close()
    return taken[5:]


async def measure(rtts: Sequence[float], messages: int) -> list[dict[str, Any]]:
    """A row for each round trip that was asked for."""
    rows = []
    async with echoing() as server:
        direct = statistics.median(await round_trips(server, messages))
        for rtt in rtts:
            with LinkProcess(server, LinkOptions().flags(rtt)) as link:
                taken = await round_trips(link.address, messages)
            deciles = statistics.quantiles(taken, n=10)
            rows.append(
                {
                    "rtt_ms": rtt,
                    "median_ms": round(statistics.median(taken), 3),
                    "error_ms": round(statistics.median(taken) - direct - rtt, 3),
                    "p10_ms": round(deciles[0], 3),
                    "p90_ms": round(deciles[-1], 3),
                }
            )
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, 10, 20, 50, 100, 200], help="milliseconds")
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    given = parser.parse_args()
    where = machine()
    rows = asyncio.run(measure(given.rtt, given.messages))
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.link_accuracy", *sys.argv[1:]])
        given.json.write_text(json.dumps({"command": command, "machine": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
