"""``pilotfish-sim link``: the link emulator as a command."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter, LocalError, PilotfishError
from pilotfish_sim.link_proxy import LinkProxy, run
from pilotfish_sim.links import Change, Cut, Jitter, LinkSpec, load_trace
from pilotfish_sim.quantities import bits_per_second, seconds, size_bytes

_CONTROL: Final = "rtt 200ms [jitter 5ms] | stall 5s | cut"
_PORT_DIGITS: Final = 5
_LONGEST_LINE: Final = 1024


def add_link_parser(commands: Any) -> None:
    """Add ``link`` to the subcommands."""
    parser = commands.add_parser(
        "link",
        help="a TCP proxy on this machine that behaves like a link",
        description="Pass TCP connections on, each direction delayed as the link would: half the round trip and its "
        "jitter, the time on a wire of limited rate or of a Mahimahi trace, retransmissions, cuts.",
        epilog=f"With --control, lines on standard input change it at once: {_CONTROL}.",
    )
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:0", help="port 0: chosen by the system")
    parser.add_argument("--to", metavar="HOST:PORT", required=True, help="where connections go")
    parser.add_argument("--rtt", metavar="TIME", default="0ms", help="round trip, such as 50ms")
    parser.add_argument("--jitter", metavar="TIME", default="0ms", help="of the round trip; half of it each way")
    parser.add_argument("--distribution", default=Jitter.UNIFORM.value, choices=[kind.value for kind in Jitter])
    parser.add_argument("--rate", metavar="RATE", help="both ways, such as 20mbit (default: no limit)")
    parser.add_argument("--rate-up", metavar="RATE", help="towards --to")
    parser.add_argument("--rate-down", metavar="RATE", help="back")
    parser.add_argument("--queue", metavar="SIZE", default="256kib", help="may wait before a slow wire")
    parser.add_argument("--loss", metavar="SHARE", type=float, default=0.0, help="of segments; TCP delivers them late")
    parser.add_argument(
        "--cut", metavar="BEGIN+LENGTH[:reset]", action="append", default=[],
        help="nothing passes then, such as 10s+5s; reset: connections break, too",
    )  # fmt: skip
    parser.add_argument(
        "--at", metavar="TIME:RTT[:JITTER]", action="append", default=[],
        help="another round trip from a time on, such as 5s:200ms",
    )  # fmt: skip
    parser.add_argument("--trace-up", metavar="FILE", type=Path, help="Mahimahi trace instead of a rate")
    parser.add_argument("--trace-down", metavar="FILE", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of jitter and losses")
    parser.add_argument("--control", action="store_true", help="read changes from standard input; its end is the end")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    parser.set_defaults(run=run_link)


def run_link(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM (with --control: until the end of standard input)."""
    spec = spec_of(arguments)
    listen, target = address(arguments.listen, "--listen"), address(arguments.to, "--to", port_0=False)
    return run(lambda: _serve(spec, listen, target, control=arguments.control, tell=_teller(arguments.json)))


def spec_of(arguments: argparse.Namespace) -> LinkSpec:
    """The link that the flags describe. Raises InvalidParameter."""
    for side, trace, rate in (
        ("up", arguments.trace_up, arguments.rate_up or arguments.rate),
        ("down", arguments.trace_down, arguments.rate_down or arguments.rate),
    ):
        if trace and rate:
            raise InvalidParameter.of(f"--trace-{side}", str(trace), f"no --rate for the same direction ({rate})")
    rates = {
        side: bits_per_second(given, name=f"--rate-{side}") if given else None
        for side, given in (
            ("up", arguments.rate_up or arguments.rate),
            ("down", arguments.rate_down or arguments.rate),
        )
    }
    return LinkSpec(
        rtt_s=seconds(arguments.rtt, name="--rtt"),
        jitter_s=seconds(arguments.jitter, name="--jitter"),
        jitter=Jitter(arguments.distribution),
        rate_up=rates["up"],
        rate_down=rates["down"],
        queue_bytes=size_bytes(arguments.queue, name="--queue"),
        loss=arguments.loss,
        cuts=tuple(_cut(text) for text in arguments.cut),
        changes=tuple(sorted((_change(text) for text in arguments.at), key=lambda change: change.at_s)),
        trace_up=load_trace(arguments.trace_up) if arguments.trace_up else (),
        trace_down=load_trace(arguments.trace_down) if arguments.trace_down else (),
        seed=arguments.seed,
    )


def address(text: str, name: str, *, port_0: bool = True) -> tuple[str, int]:
    """``host:port``; IPv6 hosts in brackets. Raises InvalidParameter."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS else -1
    if not colon or not _resolvable(host) or not (1 - port_0) <= number < 65536:
        raise InvalidParameter.of(name, text, "host:port")
    return host, number


def _resolvable(host: str) -> bool:
    """Whether it may be asked for at all: the resolver's own complaint would not be an OSError."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def _cut(text: str) -> Cut:
    times, _, kind = text.partition(":")
    begin, plus, length = times.partition("+")
    if not plus or kind not in ("", "reset"):
        raise InvalidParameter.of("--cut", text, "BEGIN+LENGTH or BEGIN+LENGTH:reset, such as 10s+5s")
    return Cut(seconds(begin, name="--cut"), seconds(length, name="--cut"), reset=kind == "reset")


def _change(text: str) -> Change:
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise InvalidParameter.of("--at", text, "TIME:RTT or TIME:RTT:JITTER, such as 5s:200ms")
    at, rtt, *jitter = (seconds(part, name="--at") for part in parts)
    return Change(at, rtt, jitter[0] if jitter else None)


def _teller(as_json: bool) -> Callable[[str, dict[str, Any]], None]:
    def tell(event: str, facts: dict[str, Any]) -> None:
        if as_json:
            line = json.dumps({"event": event, **facts})
        else:
            line = f"{event}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
        if sys.stdout is None:
            raise LocalError("cannot write to standard output: it is closed")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    return tell


async def _serve(
    spec: LinkSpec,
    listen: tuple[str, int],
    target: tuple[str, int],
    *,
    control: bool,
    tell: Callable[[str, dict[str, Any]], None],
) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with LinkProxy(spec, listen=listen, target=target) as proxy:
        host, port = proxy.address
        tell("listening", {"address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"})
        ends = {asyncio.create_task(stopping.wait())} | (
            {asyncio.create_task(_obey(proxy, tell))} if control else set()
        )
        done, pending = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            task.result()
    tell("passed", dataclasses.asdict(proxy.counts))
    return 0


async def _obey(proxy: LinkProxy, tell: Callable[[str, dict[str, Any]], None]) -> None:
    """Carry out what standard input says, to its end. Raises LocalError when it cannot be waited for."""
    reader = asyncio.StreamReader()
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    except (OSError, ValueError, AttributeError):  # a file; or closed, and then there is no sys.stdin
        raise LocalError("--control: standard input is a file, or closed; expected a pipe or a terminal") from None
    async for line in _lines(reader):
        try:
            _obey_line(proxy, line)
            tell("changed", {"line": line})
        except PilotfishError as error:
            tell("refused", {"line": line, "reason": str(error)})


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines that are not empty; of a long one the beginning."""
    line = b""
    while data := await reader.read(4096):
        *ends, begun = data.split(b"\n")
        for end in ends:
            text = (line + end)[:_LONGEST_LINE].decode(errors="replace").strip()
            line = b""
            if text:
                yield text
        line = (line + begun)[:_LONGEST_LINE]
    if text := line.decode(errors="replace").strip():
        yield text


def _obey_line(proxy: LinkProxy, line: str) -> None:
    match line.split():
        case ["rtt", rtt]:
            proxy.change(seconds(rtt, name="rtt"))
        case ["rtt", rtt, "jitter", jitter]:
            proxy.change(seconds(rtt, name="rtt"), seconds(jitter, name="jitter"))
        case ["stall", length]:
            proxy.stall(seconds(length, name="stall"))
        case ["cut"]:
            proxy.cut()
        case _:
            raise InvalidParameter.of("control line", line, _CONTROL)
