"""``pilotfish serve``: OpenAI's interface on this device, in front of a verifier."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
from typing import TYPE_CHECKING, Any, Final

from pilotfish.client_options import add_client_options, settled
from pilotfish.credentials import is_loopback
from pilotfish.output import note, show
from pilotfish.settings import settle
from pilotfish_core.errors import InvalidParameter, MissingExtra

if TYPE_CHECKING:
    from pilotfish.api.server import Endpoint

_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")


def add_serve_parser(commands: Any) -> None:
    """Add ``serve`` to the subcommands."""
    parser = commands.add_parser(
        "serve",
        help="a local OpenAI endpoint, drafted here and verified by the cloud",
        description="Answer OpenAI's clients on this device: a drafter here proposes, a verifier decides every token, "
        "and nothing is sent on that it has not decided. (The verifier's own command is pilotfish-cloud serve.)",
    )
    parser.add_argument("models", nargs="*", metavar="", help=argparse.SUPPRESS)  # for who means pilotfish-cloud serve
    add_client_options(parser, alone=False)
    own = parser.add_argument_group("this endpoint")
    own.add_argument("--listen", metavar="HOST:PORT", help="(default: 127.0.0.1:8080; port 0: any free one)")
    own.add_argument(
        "--serve-key",
        metavar="KEY",
        help="that callers must show; needed beyond this machine (default: $PILOTFISH_SERVE_KEY)",
    )
    own.add_argument("--json", action="store_true", help="print the ready line as a JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit code. Raises PilotfishError."""
    meant = [*arguments.models, *([arguments.model] if arguments.model else [])]
    settle(arguments)
    if arguments.models or (meant and arguments.server is None):
        note(f"pilotfish: did you mean: pilotfish-cloud serve {' '.join(meant)}")
        return 2
    options = settled(arguments)
    host, port = parse_listen(arguments.listen)
    key = _key(arguments.serve_key)
    if key is None and not is_loopback(host):
        raise InvalidParameter(
            f"--listen {arguments.listen} is open to other machines, which would use your verifier: give a key that "
            "they must show (--serve-key, PILOTFISH_SERVE_KEY)"
        )
    if not is_loopback(host):
        note("pilotfish: warning: what is asked and answered crosses the network unencrypted")
    try:
        from pilotfish.api.server import Endpoint
        from pilotfish_openai.listener import address_of, bind
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "fastapi", "serve", "pilotfish serve") from None
    from pilotfish.client import AsyncClient

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    listener = bind(host, port, "--listen")
    address = f"http://{address_of(host, listener.getsockname()[1])}/v1"

    def started(endpoint: Endpoint) -> None:
        ready = {"event": "ready", "address": address, "model": endpoint.model}
        show(json.dumps(ready) + "\n" if arguments.json else f"{address} answers for {endpoint.model}\n")

    async def serve() -> None:
        async with AsyncClient(arguments.server, **options) as client:
            endpoint = Endpoint(client, listener, key=key, guarded=key is None)
            await endpoint.run(started, lambda: note("pilotfish: finishing what runs; once more ends it"))

    with listener:
        asyncio.run(serve())
    return 0


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port. Raises InvalidParameter."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not host.isprintable() or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise InvalidParameter.of("--listen", text, "HOST:PORT, such as 127.0.0.1:8080")
    return host, int(port)


def _key(given: str | None) -> str | None:
    if given is None:
        return None
    if not _KEY.fullmatch(given.strip()):
        raise InvalidParameter("--serve-key is not an API key; expected up to 512 characters of ASCII, no spaces")
    return given.strip()
