"""Starts what a verifier consists of (engine, gRPC, HTTP) and takes it down in order."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from typing import Final

import grpc
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from starlette.types import ASGIApp

from pilotfish_cloud.auth import Authenticator, ServerSecret
from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.draft_offers import DraftOffers, folders_of
from pilotfish_cloud.engine.interface import Engine, EngineInfo
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.http.app import create_app
from pilotfish_cloud.http.demo import Demo
from pilotfish_cloud.http.socket_protocol import PING_INTERVAL_S, PING_TIMEOUT_S, SocketProtocol
from pilotfish_cloud.http.websocket import WebSocketDoor
from pilotfish_cloud.metrics import ServerMetrics
from pilotfish_cloud.observer import Observers
from pilotfish_cloud.origins import Origins
from pilotfish_cloud.service import VerifierService
from pilotfish_cloud.shared_state.admission import SharedAdmission
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_cloud.shared_state.opening import open_state
from pilotfish_cloud.tls import Certificates
from pilotfish_cloud.tracing import Tracing
from pilotfish_core.admission import MemoryAdmission, ResumePolicy, ServerLimits
from pilotfish_core.errors import AddressInUse, LocalError
from pilotfish_core.proto.v1 import verifier_pb2
from pilotfish_core.proto.v1 import verifier_pb2_grpc as pb_grpc
from pilotfish_core.tickets import TICKET_EVERY
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.wire import MAX_FRAME_BYTES
from pilotfish_openai.chat_template import ChatTemplate
from pilotfish_openai.listener import HttpServer, address_of, bind

_log = logging.getLogger(__name__)

GRACE_S: Final = 1.0  # for statuses to be sent
VERIFIER: Final = verifier_pb2.DESCRIPTOR.services_by_name["Verifier"].full_name
GRPC_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.so_reuseport", 0),  # a port in use must be an error, not a second listener that takes half the calls
    ("grpc.keepalive_time_ms", 50_000),  # under the 60 s after which common proxies close idle connections
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 512),  # on one connection: calls whose peer never reads stay until it ends
    ("grpc.max_metadata_size", 8 * 1024),  # of one call; more than the soft limit is refused at random, this at once
    ("grpc.absolute_max_metadata_size", 16 * 1024),
]


class VerifierServer:
    """A verifier on its ports. ``run`` until a signal, or ``start`` and ``stop``."""

    def __init__(self, config: ServerConfig, engine: Engine, tokenizer: Tokenizer) -> None:
        """Raises FileFormatError, InvalidParameter, ModelLoadError for files of the
        configuration that cannot be used.
        """
        self._config = config
        self.authenticate = authenticator_of(config)
        self.certificates = certificates_of(config)
        self._tracing: Tracing | None = None
        if config.otlp_endpoint is not None:
            self._tracing = Tracing(config.otlp_endpoint, service=config.served_model_name)
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_template = ChatTemplate.load(config.model)
        self._offers = DraftOffers.load(folders_of(config.drafts), tokenizer.hash)
        self._demo = None if config.demo is None else Demo.load(config.demo)
        self._stopping = asyncio.Event()
        self._failure = ""
        self.gateway: Gateway | None = None
        self.service: VerifierService | None = None
        self.sockets: WebSocketDoor | None = None
        self.replica = config.replica_name or f"{socket.gethostname()[:80]}-{secrets.token_hex(3)}"
        self.port = 0
        self.http_port = 0

    @property
    def info(self) -> EngineInfo:
        """What the engine says of its target."""
        return self._engine.info

    async def start(self) -> None:
        """Bind both ports and begin. Raises AddressInUse, and LocalError without a Redis that is required or for a
        journal of usage that cannot be written.
        """
        config = self._config
        limits = ServerLimits(
            max_generations=config.max_generations, max_tokens=config.max_total_tokens, slots=config.max_num_seqs
        )
        self.link = StateLink(open_state(config), self.replica, self._line, journal=config.usage_journal)
        if config.redis_url is not None:
            self.link.admission = SharedAdmission(
                limits, self.link, replica=self.replica, clock=asyncio.get_running_loop().time
            )
        self.gateway = Gateway(
            self._engine,
            self._tokenizer,
            served_model_name=config.served_model_name,
            max_unacknowledged=config.max_unacknowledged,
            admission=self.link.admission or MemoryAdmission(limits),
            tracing=self._tracing,
            tickets=self.authenticate.tickets(every=TICKET_EVERY if self.info.deterministic else 1),
            resume=ResumePolicy(config.resume),
            routing=self.authenticate.routing(),
        )
        link = self.link
        self.authenticate.revoked_elsewhere = lambda key_id: key_id in link.revoked
        catalogue = Catalogue(self.gateway, chat_template=self._chat_template, offers=self._offers)
        self.service = VerifierService(self.gateway, catalogue, self.authenticate, pad_frames=config.pad_frames)
        self.sockets = WebSocketDoor(
            self.gateway,
            catalogue,
            self.authenticate,
            origins=Origins(config.allow_origins),
            pad_frames=config.pad_frames,
        )
        http_socket = bind(config.host, config.http_port, "--http-port")
        catalogue.http_url, catalogue.http_port = config.http_url or "", http_socket.getsockname()[1]
        self._grpc = grpc.aio.server(options=GRPC_OPTIONS)
        try:
            self.port = self._listen(address_of(config.host, config.port))
        except RuntimeError as error:
            http_socket.close()
            raise AddressInUse(
                f"cannot listen on {address_of(config.host, config.port)} (--port): it is taken or not ours",
                private=str(error),
            ) from None
        try:
            await link.start(required=config.redis_required)
        except LocalError:
            http_socket.close()
            raise
        pb_grpc.add_VerifierServicer_to_server(self.service, self._grpc)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if config.reflection:
            names = (VERIFIER, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
        loop = asyncio.get_running_loop()

        def died(reason: str) -> None:
            loop.call_soon_threadsafe(self._engine_died, reason)

        self._engine.start(self.gateway.listen, died)
        await self._grpc.start()
        await self._set_serving(True)
        self.http_port = http_socket.getsockname()[1]
        metrics = ServerMetrics(self.gateway, tenant_labels=config.tenant_metrics, link=link)
        self.gateway.observer = Observers(metrics.generations, link.ledger)
        app = create_app(
            self.gateway,
            chat_template=self._chat_template,
            authenticate=self.authenticate,
            metrics=metrics,
            link=link,
            operator=config.operator,
            catalogue=catalogue,
            sockets=self.sockets,
            demo=self._demo,
        )
        http = http_config(app)
        http.load()
        if self.certificates is not None:
            http.ssl = self.certificates.http_context()
        self._http = HttpServer(http)
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]))

    async def run(self, started: Callable[[VerifierServer], None]) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second one hurries. SIGHUP reads keys and certificates again.

        Raises LocalError when the engine has died.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.interrupt)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        await self.start()
        try:
            started(self)
            await self._stopping.wait()
        finally:
            await self.stop(0.0 if self._failure else self._config.shutdown_timeout_s)
        if self._failure:
            raise LocalError(self._failure)

    def interrupt(self) -> None:
        """What a signal to end does: the first one drains, the next one hands back what still runs at once."""
        if self._stopping.is_set() and self.gateway is not None:
            self.gateway.hurry()
        self._stopping.set()

    def reload(self) -> None:
        """Read keys, settings of tenants and certificates again; what cannot be used leaves the old ones in force."""
        good = self.authenticate.reload()
        if self.certificates is not None:
            good = self.certificates.reload() and good
        _log.log(logging.INFO if good else logging.WARNING, "read again: keys, settings of tenants and certificates")

    async def stop(self, timeout_s: float = 0.0) -> None:
        """Refuse new generations, let running ones finish within ``timeout_s``, then close everything.

        New gRPC connections are refused from the beginning: a load balancer then asks another replica at once, where a
        status would go to the device, whose next attempt may well come here again.
        """
        if self.gateway is None:
            return
        await self._set_serving(False)
        refusing = asyncio.create_task(self._grpc.stop(grace=timeout_s + GRACE_S))
        await self.gateway.drain(timeout_s)
        await self._grpc.stop(grace=GRACE_S)
        await refusing
        if self.sockets is not None:
            await self.sockets.settled(GRACE_S)
        self._http.should_exit = True
        await self._http_task
        await self.link.close()
        await asyncio.to_thread(self._engine.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _line(self) -> dict[str, str | int | bool]:
        """What this replica says of itself to the others."""
        gateway = self.gateway
        return {
            "model": self._config.served_model_name,
            "fingerprint": self.info.fingerprint,
            "generations": 0 if gateway is None else gateway.running,
            "draining": gateway is not None and gateway.draining,
        }

    def _listen(self, address: str) -> int:
        if self.certificates is None:
            return self._grpc.add_insecure_port(address)
        return self._grpc.add_secure_port(address, self.certificates.grpc_credentials())

    def _engine_died(self, reason: str) -> None:
        """Nothing can be served any more: end, so that whoever watches this process starts it again."""
        self._failure = reason
        self._stopping.set()

    async def _set_serving(self, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if serving else states.NOT_SERVING
        for name in ("", VERIFIER):
            await self._health.set(name, status)


def http_config(app: ASGIApp) -> uvicorn.Config:
    """How the HTTP port speaks: messages of WebSocket as long as gRPC's, and not compressed, since sizes leak text."""
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=5,
        ws=SocketProtocol,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
    )


def authenticator_of(config: ServerConfig) -> Authenticator:
    """Reads keys, settings of tenants and the secret. Raises FileFormatError, InvalidParameter."""
    secret = ServerSecret() if config.secret_file is None else ServerSecret.load(config.secret_file)
    return Authenticator(secret, keys_file=config.keys_file, tenants_file=config.tenants_file)


def certificates_of(config: ServerConfig) -> Certificates | None:
    """Reads what TLS needs; None without. Raises FileFormatError."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)


def check_ports(config: ServerConfig) -> None:
    """Say that a port is taken before a model is loaded for nothing. Raises AddressInUse."""
    for port, flag in ((config.port, "--port"), (config.http_port, "--http-port")):
        bind(config.host, port, flag).close()
