"""``pilotfish-cloud``: the operator's command."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pilotfish_cloud.config import DTYPES, SPECULATIONS, ServerConfig
from pilotfish_core.errors import MissingExtra, ModelLoadError, PilotfishError

if TYPE_CHECKING:
    from pilotfish_cloud.server import VerifierServer


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        _serve(arguments)
    except PilotfishError as error:
        print(f"pilotfish-cloud: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pilotfish-cloud", description="The cloud verifier of Pilotfish.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a target model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Serve a target model: verify drafts from devices, decode alone where there are none.",
    )
    serve.add_argument("model", metavar="MODEL", help="folder of a Hugging Face model (Llama, Mistral, Qwen2, Qwen3)")
    serve.add_argument("--served-model-name", help="name that devices ask for (default: the folder's name)")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind")
    serve.add_argument("--port", type=int, default=50051, help="gRPC port; 0: any free one")
    serve.add_argument("--http-port", type=int, default=8000, help="HTTP port; 0: any free one")
    serve.add_argument("--dtype", default="float32", choices=DTYPES, help="numbers to compute with")
    serve.add_argument(
        "--deterministic", action="store_true", help="the same bits for a token whatever the batch, draft and replica"
    )
    serve.add_argument("--threads", type=int, default=1, help="CPU threads of the engine")
    serve.add_argument("--max-model-len", type=int, help="longest prompt + output (default: the model's context)")
    serve.add_argument("--max-num-seqs", type=int, default=64, help="generations in one batch")
    serve.add_argument("--max-num-batched-tokens", type=int, default=512, help="rows in one step")
    serve.add_argument(
        "--speculation", default="goodput", choices=SPECULATIONS,
        help="verify as many draft tokens as raise the goodput and hold steps where that pays, or always all, no holds",
    )  # fmt: skip
    serve.add_argument("--hold-cap", type=float, default=50.0, metavar="MS", help="the longest hold of a step")
    serve.add_argument("--max-draft-tokens", type=int, default=32, help="draft tokens held per generation")
    serve.add_argument(
        "--draft-model", type=Path, metavar="DIR",
        help="a small model of the same tokenizer that drafts in the cloud for devices that do not",
    )  # fmt: skip
    serve.add_argument("--shutdown-timeout", type=float, default=30.0, help="seconds to finish in after SIGTERM")
    serve.add_argument("--insecure", action="store_true", help="allow a bind beyond loopback without keys and TLS")
    serve.add_argument("--json", action="store_true", help="print the ready line as JSON")
    serve.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    serve.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return parser


def _end_with_stdin() -> None:
    """From now on the end of standard input is a SIGTERM: whoever started this verifier may be killed before it can
    end it. In a thread, since models load for longer than a killed parent should be outlived.
    """

    def wait() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:  # there is none
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # Not through sys.stdin: a thread that waits in there holds a lock that the interpreter wants at its end.
    threading.Thread(target=wait, name="pilotfish-stdin", daemon=True).start()


def _serve(arguments: argparse.Namespace) -> None:
    if arguments.until_stdin_closes:
        _end_with_stdin()
    model = Path(arguments.model).expanduser()
    draft_model = arguments.draft_model.expanduser() if arguments.draft_model is not None else None
    config = ServerConfig(
        model=model,
        served_model_name=arguments.served_model_name or model.resolve().name,
        host=arguments.host,
        port=arguments.port,
        http_port=arguments.http_port,
        dtype=arguments.dtype,
        deterministic=arguments.deterministic,
        threads=arguments.threads,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        max_draft_tokens=arguments.max_draft_tokens,
        speculation=arguments.speculation,
        hold_cap_ms=arguments.hold_cap,
        shutdown_timeout_s=arguments.shutdown_timeout,
        insecure=arguments.insecure,
        draft_model=draft_model,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would log comes back as our own error
    for folder in (model, draft_model):
        if folder is not None and not folder.is_dir():
            raise ModelLoadError(f"{folder} is not a folder; expected that of a Hugging Face model")
    try:
        from pilotfish_cloud.server import VerifierServer, check_ports

        check_ports(config)
        from pilotfish_cloud.engine.engine import EmbeddedEngine
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "torch", "cloud", "pilotfish-cloud serve") from None
    engine = EmbeddedEngine.load(config)

    def started(server: VerifierServer) -> None:
        try:
            tell(server)
        except OSError as error:  # nobody reads what is printed; that is no reason not to serve
            logging.getLogger("pilotfish_cloud").warning("the ready line could not be printed: %s", error)

    def tell(server: VerifierServer) -> None:
        info = engine.info
        if arguments.json:
            ready = {
                "event": "ready",
                "address": f"grpc://{config.host}:{server.port}",
                "http": f"http://{config.host}:{server.http_port}",
                "model": config.served_model_name,
                "fingerprint": info.fingerprint,
                "deterministic": info.deterministic,
                "dtype": info.dtype,
                "pid": os.getpid(),
            }
            print(json.dumps(ready), flush=True)
        else:
            print(
                f"serving {config.served_model_name} ({info.dtype}{', deterministic' * info.deterministic}) on "
                f"grpc://{config.host}:{server.port}, health on http://{config.host}:{server.http_port}/readyz",
                flush=True,
            )

    asyncio.run(VerifierServer(config, engine, engine.tokenizer).run(started))
