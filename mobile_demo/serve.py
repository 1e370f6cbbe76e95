"""``make mobile-demo``: a verifier that serves the page and a draft model for browsers, and how a phone finds it."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pilotfish.demo.stage import exported_draft, find_reference, inflated_target
from pilotfish.processes import end_process
from pilotfish.signals import held, raising
from pilotfish_cloud.files import read_private, write_private
from pilotfish_cloud.keyring import create_key
from pilotfish_core.errors import FileFormatError, LocalError, PilotfishError

ROOT: Final = Path(__file__).resolve().parent.parent
DIST: Final = ROOT / "mobile_demo" / "dist"
WORK: Final = ROOT / "build" / "mobile"
PORT: Final = 8000
_NOWHERE: Final = "192.0.2.1"  # for documentation (RFC 5737): which of our addresses would be used to reach anything


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mobile_demo.serve",
        description="Serve the page, the reference draft for browsers and the reference target, and print the address.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--local", action="store_true", help="for this machine only, without a key")
    parser.add_argument("--http-port", type=int, default=PORT, help="0: any free one")
    parser.add_argument("--quant", default="int8", choices=("int8", "fp32"), help="of the draft model")
    parser.add_argument(
        "--small", action="store_true", help="the target as it is: its steps are so short that no draft can gain"
    )
    options = parser.parse_args(arguments)
    try:
        with raising():
            return _serve(options)
    except PilotfishError as error:
        print(f"mobile demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(options: argparse.Namespace) -> int:
    if not (DIST / "index.html").is_file():
        raise LocalError(f"{DIST} is not built: make mobile")
    reference = find_reference(str(ROOT / "reference"))
    print("Preparing the models (kept for the next time) ...", flush=True)
    draft = exported_draft(reference, WORK, options.quant, to="onnx-web")
    target = reference / "target" if options.small else inflated_target(reference, ROOT / "build" / "demo")
    command = [sys.executable, "-m", "pilotfish_cloud", "serve", str(target), "--json", "--until-stdin-closes"]
    command += [
        "--served-model-name",
        "reference",
        "--deterministic",
        "--dtype",
        "float32" if options.small else "bfloat16",
    ]
    command += ["--port", "0", "--http-port", str(options.http_port), "--demo", str(DIST), "--drafts", str(draft)]
    host, key = "127.0.0.1", None
    if not options.local:
        host, key = local_address(), demo_key(WORK)
        # Keys, but no TLS: a certificate that phones believe is not to be had for an address of a local network.
        command += ["--host", "0.0.0.0", "--insecure", "--keys-file", str(WORK / "keys.json"), "--operator", "key"]
    with held():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise LocalError("the verifier's standard output cannot be read")
        ready = process.stdout.readline()
        if not ready:
            return process.wait() or 1  # it has said why
        for line in invitation(host, urlsplit(json.loads(ready)["http"]).port or options.http_port, key):
            print(line, flush=True)
        return process.wait()
    finally:
        end_process(process)


def invitation(host: str, port: int, key: str | None) -> list[str]:
    """What is printed once it serves: the address, as a QR code, too, where another machine can reach it."""
    fragment = "" if key is None else f"#key={key}"  # a fragment is not sent: no log has it
    lines = ["", f"  On this machine:  http://localhost:{port}/demo/{fragment}"]
    if key is not None:
        address = f"http://{host}:{port}/demo/{fragment}"
        lines += [f"  On a phone:       {address}", "", *qr_code(address), ""]
        lines += [
            "  The key in the address lets nobody else in; without TLS it can be read on the way, so use a network",
            "  that you trust. Browsers install a page, and run it offline, only from localhost or over https:",
            "  docs/mobile.md.",
        ]
    return [*lines, "", "  Ctrl-C ends it.", ""]


def qr_code(text: str) -> list[str]:
    """As lines for a terminal, two modules a character."""
    import segno

    matrix = [[0] * 2 + [int(module) for module in row] + [0] * 2 for row in segno.make(text, error="l").matrix]
    width = len(matrix[0])
    rows = [[0] * width] * 2 + matrix + [[0] * width] * (2 + len(matrix) % 2)
    blocks = "█▀▄ "  # light, as most terminals are dark: what is set is left out
    return [
        "  " + "".join(blocks[2 * upper + lower] for upper, lower in zip(rows[at], rows[at + 1], strict=True))
        for at in range(0, len(rows), 2)
    ]


def local_address() -> str:
    """This machine's address in its network; no packet is sent to find out. Loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((_NOWHERE, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def demo_key(work: Path) -> str:
    """The demo's API key, the same each time: a page that was installed keeps working. Made with its keys file."""
    work.mkdir(parents=True, exist_ok=True)
    kept, keys = work / "key", work / "keys.json"
    if kept.is_file() and keys.is_file():
        with contextlib.suppress(FileFormatError, UnicodeDecodeError):
            return read_private(kept, "the demo's key").decode().strip()
    key = create_key(keys, "mobile-demo")
    write_private(kept, key + "\n", "the demo's key")
    return key


if __name__ == "__main__":
    sys.exit(main())
