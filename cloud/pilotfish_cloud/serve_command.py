"""``pilotfish-cloud serve``: from a configuration to a verifier on its ports."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

from pilotfish_cloud.config import ServerConfig, is_loopback
from pilotfish_cloud.engine.model_source import is_model_id, resolve_model
from pilotfish_cloud.preflight import check_drafts, check_parts
from pilotfish_core.errors import MissingExtra, ModelLoadError

if TYPE_CHECKING:
    from pilotfish_cloud.engine.engine import EmbeddedEngine
    from pilotfish_cloud.engine.process import EngineProcess
    from pilotfish_cloud.server import VerifierServer

_log = logging.getLogger(__name__)


def run_serve(config: ServerConfig, *, as_json: bool) -> int:
    """Serve until a signal. Returns the exit code. Raises PilotfishError, and does so before weights are loaded for
    whatever can be known before.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would log comes back as our own error
    for model in (config.model, config.draft_model):
        if model is not None and not model.is_dir() and not is_model_id(str(model)):
            raise ModelLoadError(f"{model} is not a folder, nor a Hugging Face id (owner/name)")
    check_parts(config)
    if config.insecure and not is_loopback(config.host) and (config.keys_file is None or config.tls_cert is None):
        _log.warning("--insecure: %s is served without keys or TLS of our own", config.host)
    draft_model = None if config.draft_model is None else resolve_model(str(config.draft_model))
    config = dataclasses.replace(config, model=resolve_model(str(config.model)), draft_model=draft_model)
    check_drafts(config)
    try:
        from pilotfish_cloud.server import VerifierServer

        engine = _load(config)
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "torch", "cloud", "pilotfish-cloud serve") from None

    def started(server: VerifierServer) -> None:
        try:
            print(_ready_line(config, server, as_json), flush=True)
        except OSError as error:  # nobody reads what is printed; that is no reason not to serve
            logging.getLogger("pilotfish_cloud").warning("the ready line could not be printed: %s", error)

    asyncio.run(VerifierServer(config, engine, engine.tokenizer).run(started))
    return 0


def end_with_stdin() -> None:
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


def _load(config: ServerConfig) -> EmbeddedEngine | EngineProcess:
    """The engine, in a process of its own where this system can hand a socket to one."""
    if config.engine_process and os.name == "posix":
        from pilotfish_cloud.engine.process import EngineProcess

        return EngineProcess.load(config)
    from pilotfish_cloud.engine.engine import EmbeddedEngine

    return EmbeddedEngine.load(config)


def _ready_line(config: ServerConfig, server: VerifierServer, as_json: bool) -> str:
    info = server.info
    secure = "s" * (config.tls_cert is not None)
    address = f"grpc{secure}://{config.host}:{server.port}"
    http = f"http{secure}://{config.host}:{server.http_port}"
    demo = None if config.demo is None else f"{http}/demo/"
    if as_json:
        return json.dumps(
            {
                "event": "ready",
                "address": address,
                "http": http,
                "demo": demo,
                "model": config.served_model_name,
                "fingerprint": info.fingerprint,
                "deterministic": info.deterministic,
                "dtype": info.dtype,
                "pid": os.getpid(),
            }
        )
    how = f"{info.dtype}{', deterministic' * info.deterministic}"
    page = "" if demo is None else f", the demo on {demo}"
    return f"serving {config.served_model_name} ({how}) on {address}, health on {http}/readyz{page}"
