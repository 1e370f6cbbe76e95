"""Starts what a verifier consists of (engine, gRPC, HTTP) and takes it down in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final

import grpc
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.interface import Engine
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.app import create_app
from pilotfish_cloud.http.chat_template import ChatTemplate
from pilotfish_cloud.service import VerifierService
from pilotfish_core.errors import AddressInUse
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.wire import MAX_FRAME_BYTES

GRPC_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.so_reuseport", 0),  # a port in use must be an error, not a second listener that takes half the calls
    ("grpc.keepalive_time_ms", 50_000),  # under the 60 s after which common proxies close idle connections
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: a signal drains the whole verifier, not HTTP alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class VerifierServer:
    """A verifier on its ports. ``run`` until a signal, or ``start`` and ``stop``."""

    def __init__(self, config: ServerConfig, engine: Engine, tokenizer: Tokenizer) -> None:
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_template = ChatTemplate.load(config.model)
        self._stopping = asyncio.Event()
        self.gateway: Gateway | None = None
        self.service: VerifierService | None = None
        self.port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Bind both ports and begin. Raises AddressInUse."""
        config = self._config
        self.gateway = Gateway(
            self._engine,
            self._tokenizer,
            served_model_name=config.served_model_name,
            max_unacknowledged=config.max_unacknowledged,
        )
        self.service = VerifierService(self.gateway)
        http_socket = _bind(config.host, config.http_port, "--http-port")
        self._grpc = grpc.aio.server(options=GRPC_OPTIONS)
        try:
            self.port = self._grpc.add_insecure_port(_address(config.host, config.port))
        except RuntimeError as error:
            http_socket.close()
            raise AddressInUse(
                f"cannot listen on {_address(config.host, config.port)} (--port): it is taken or not ours",
                private=str(error),
            ) from None
        pb_grpc.add_VerifierServicer_to_server(self.service, self._grpc)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._engine.start(self.gateway.listen)
        await self._grpc.start()
        await self._set_serving(True)
        self.http_port = http_socket.getsockname()[1]
        app = create_app(self.gateway, chat_template=self._chat_template)
        self._http = _HttpServer(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=5))
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]))

    async def run(self, started: Callable[[VerifierServer], None]) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self.start()
        try:
            started(self)
            await self._stopping.wait()
        finally:
            await self.stop(self._config.shutdown_timeout_s)

    async def stop(self, timeout_s: float = 0.0) -> None:
        """Refuse new generations, let running ones finish within ``timeout_s``, then close everything."""
        if self.gateway is None:
            return
        await self._set_serving(False)
        await self.gateway.drain(timeout_s)
        await self._grpc.stop(grace=1.0)
        self._http.should_exit = True
        await self._http_task
        await asyncio.to_thread(self._engine.close)

    async def _set_serving(self, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if serving else states.NOT_SERVING
        for name in ("", "pilotfish_core.proto.v1.Verifier"):
            await self._health.set(name, status)


def check_ports(config: ServerConfig) -> None:
    """Say that a port is taken before a model is loaded for nothing. Raises AddressInUse."""
    for port, flag in ((config.port, "--port"), (config.http_port, "--http-port")):
        _bind(config.host, port, flag).close()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(host: str, port: int, flag: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, UnicodeError, TypeError) as error:  # the last two: a host that is no text
        listener.close()
        error = error if isinstance(error, OSError) else OSError(0, "not a host name")
        raise AddressInUse(f"cannot listen on {_address(host, port)} ({flag}): {error.strerror or error}") from None
    listener.setblocking(False)
    return listener
