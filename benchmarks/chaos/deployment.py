"""What an operator would run, on this machine: Redis, verifiers, nginx with the shipped file, links to the devices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from benchmarks.changing_link import ControlledLink
from benchmarks.chaos.replica import Replica
from pilotfish.client import AsyncClient
from pilotfish_cloud.keyring import create_key
from tests.cloud.shared_state.redis_server import RedisServer, free_port
from tests.e2e.certificates import issue

SHIPPED: Final = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "pilotfish.conf"
RTTS_MS: Final = (20, 45, 80, 120)
UNACKNOWLEDGED: Final = 64
START_TIMEOUT_S: Final = 60.0


class Deployment:
    """``tenants``: the text of the tenants' file; a key for each name in ``names``. Redis keeps what it holds on disk.

    ``affinity``: whether nginx hashes routes, as the shipped file says, or picks replicas at random.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        count: int = 3,
        rtts_ms: Sequence[int] = RTTS_MS,
        names: Sequence[str] = ("tenant",),
        tenants: str = "",
        affinity: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.authority = issue(folder, "authority")
        issue(folder, "server", self.authority)
        secret = folder / "secret"
        secret.write_text(secrets.token_hex(32))
        secret.chmod(0o600)
        (folder / "tenants.toml").write_text(tenants)
        self.keys = {name: create_key(folder / "keys.json", name) for name in names}
        self.redis = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
        self.port = free_port()
        shared = [
            *("--deterministic", "--secret-file", str(secret), "--keys-file", str(folder / "keys.json")),
            *("--tenants-file", str(folder / "tenants.toml"), "--redis-url", self.redis.url),
            *("--redis-timeout", "1000", "--max-unacknowledged", str(UNACKNOWLEDGED), *options),
        ]
        self.replicas = [
            Replica(number, model, folder, [*shared, "--usage-journal", str(folder / f"usage-{number}.journal")])
            for number in range(1, count + 1)
        ]
        self.links: list[ControlledLink] = []
        self._rtts_ms = rtts_ms
        self._affinity = affinity

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Deployment]:
        """All of it, and none of it left behind."""
        async with contextlib.AsyncExitStack() as stack:
            self.redis.start()
            stack.callback(self.redis.stop)
            for replica in self.replicas:
                stack.push_async_callback(replica.close)
            await asyncio.gather(*(replica.start() for replica in self.replicas))
            stack.enter_context(self._nginx())
            for rtt_ms in self._rtts_ms:
                link = stack.enter_context(ControlledLink(f"127.0.0.1:{self.port}"))
                link.say(f"rtt {rtt_ms}ms")
                self.links.append(link)
            yield self

    def client(self, name: str, link: int | None = None, **options: Any) -> AsyncClient:
        """A device of a tenant, over a link or at nginx itself."""
        address = f"127.0.0.1:{self.port}" if link is None else self.links[link].address
        alone = {"draft": None, "arm": "cloud"} if options.get("draft") is None else {}
        return AsyncClient(f"grpcs://{address}", ca=self.authority.cert, api_key=self.keys[name], **alone | options)

    @contextlib.contextmanager
    def _nginx(self) -> Any:
        program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
        if program is None:
            raise RuntimeError("nginx is missing; say: make servers")
        command = [program, "-p", str(self.folder), "-c", str(self._configuration())]
        with (self.folder / "nginx.log").open("ab") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            credentials = grpc.ssl_channel_credentials(self.authority.cert.read_bytes())
            with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
                grpc.channel_ready_future(channel).result(timeout=START_TIMEOUT_S)
            yield
        finally:
            process.terminate()
            process.wait()

    def _configuration(self) -> Path:
        """The shipped file with these replicas, ports and certificates."""
        text = SHIPPED.read_text()
        for port, name in ((50051, "port"), (8000, "http_port")):
            line = re.compile(rf"(?:    server verifier-\d+:{port}( .*;\n))+")
            found = line.search(text)
            assert found is not None
            own = [f"    server 127.0.0.1:{getattr(replica, name)}{found[1]}" for replica in self.replicas]
            text = line.sub("".join(own), text)
        if not self._affinity:
            text = text.replace("hash $http_pilotfish_route consistent;", "random;")
        text = text.replace("listen 50051", f"listen 127.0.0.1:{self.port}")
        text = text.replace("listen 8443", f"listen 127.0.0.1:{free_port()}")
        text = text.replace("/etc/pilotfish/", f"{self.folder}/")
        (self.folder / "pilotfish.conf").write_text(text)
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = self.folder / "nginx.conf"
        whole.write_text(
            f"daemon off; pid {self.folder}/nginx.pid; error_log stderr warn; events {{}}\n"
            f"http {{ access_log off; {temporary} include {self.folder}/pilotfish.conf; }}\n"
        )
        return whole
