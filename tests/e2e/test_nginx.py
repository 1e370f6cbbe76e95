"""The nginx that an operator would run, with the file that we ship, before two verifier processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from pilotfish.client import AsyncClient
from tests.cloud.shared_state.contract import until
from tests.cloud.shared_state.redis_server import free_port
from tests.e2e.certificates import issue
from tests.e2e.conftest import ROOT, TARGET
from tests.e2e.socket_calls import PATH, socket
from tests.e2e.test_commands import read_some, started

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
SHIPPED = ROOT / "deploy" / "nginx" / "pilotfish.conf"
INSTALL = "make servers"
PATIENCE_S = 60.0
PROMPT = "import os\n\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n" * 20


class Deployment:
    """``replicas``: their processes and ready lines; ``address`` is nginx's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.https_port = free_port(), free_port()
        self.replicas: list[tuple[subprocess.Popen[str], dict[str, Any]]] = []
        self.changes: dict[str, str] = {}  # of the shipped file
        self.authority = issue(folder, "authority")
        issue(folder, "server", self.authority)
        secret = folder / "secret"
        secret.write_text(secrets.token_hex(32))
        secret.chmod(0o600)

    @property
    def address(self) -> str:
        return f"grpcs://127.0.0.1:{self.port}"

    def client(self) -> AsyncClient:
        return AsyncClient(self.address, draft=None, arm="cloud", ca=self.authority.cert)

    async def opened(self) -> list[int]:
        """Generations that each replica began; -1 for one that is gone."""
        counts = []
        async with httpx.AsyncClient() as http:
            for process, ready in self.replicas:
                gone = process.poll() is not None
                figures = {} if gone else (await http.get(f"{ready['http']}/status.json")).json()
                counts.append(-1 if gone else figures["generations"]["opened"])
        return counts

    def configuration(self) -> Path:
        """The shipped file, with these ports and certificates."""
        text = SHIPPED.read_text()
        for number, (_, ready) in enumerate(self.replicas, start=1):
            for port, address in ((50051, ready["address"]), (8000, ready["http"])):
                assert f"server verifier-{number}:{port}" in text
                text = text.replace(f"verifier-{number}:{port}", address.split("//")[1])
        text = text.replace("listen 50051", f"listen 127.0.0.1:{self.port}")
        text = text.replace("listen 8443", f"listen 127.0.0.1:{self.https_port}")
        text = text.replace("/etc/pilotfish/", f"{self.folder}/")
        for shipped, changed in self.changes.items():
            assert shipped in text
            text = text.replace(shipped, changed)
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


@contextlib.contextmanager
def nginx(deployment: Deployment) -> Iterator[None]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.fail(f"nginx is missing; say: {INSTALL}")
    command = [program, "-p", str(deployment.folder), "-c", str(deployment.configuration())]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        credentials = grpc.ssl_channel_credentials(deployment.authority.cert.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{deployment.port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        yield
    finally:
        process.terminate()
        process.communicate()


@contextlib.asynccontextmanager
async def deployed(folder: Path) -> AsyncIterator[Deployment]:
    deployment = Deployment(folder)
    serve = ("serve", TARGET, "--port", 0, "--http-port", 0, "--deterministic", "--no-engine-process", "--json")
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            process = stack.enter_context(
                started("pilotfish_cloud", *serve, "--secret-file", folder / "secret")  # both begin at the same time
            )
            deployment.replicas.append((process, {}))
        for number, (process, _) in enumerate(deployment.replicas):
            ready = json.loads(await asyncio.to_thread(read_some, process.stdout, b"\n"))
            deployment.replicas[number] = (process, ready)
        stack.enter_context(nginx(deployment))
        yield deployment


async def test_one_prompt_meets_one_replica_and_goes_on_at_the_other(tmp_path: Path) -> None:
    params: dict[str, Any] = {"max_tokens": 8, "temperature": 0.8, "seed": 5, "ignore_eos": True}
    async with deployed(tmp_path) as deployment, deployment.client() as one, deployment.client() as two:
        for client in (one, two):  # each learns the prompt's route
            await (await client.generate(PROMPT, **params)).result()
        before = await deployment.opened()
        results = [await (await client.generate(PROMPT, **params)).result() for client in (one, two) * 3]
        after = await deployment.opened()
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 6]
        cached = sum(result.metrics.cached_tokens for result in results[1:])
        assert cached >= 0.9 * 5 * results[0].metrics.prompt_tokens
        assert len({result.token_ids for result in results}) == 1

        page = f"https://127.0.0.1:{deployment.https_port}"  # of the verifier's own
        async with socket(page, origin=page, path=f"{PATH}?route=x", ssl=_trusting(deployment)):
            pass
        over = AsyncClient(page.replace("https", "wss"), draft=None, arm="cloud", ca=deployment.authority.cert)
        async with over as browser:
            assert (await (await browser.generate(PROMPT, **params)).result()).token_ids == results[0].token_ids

        params["max_tokens"] = 300
        whole = await (await one.generate(PROMPT, **params)).result()
        stream = await one.generate(PROMPT, **params)
        await stream.__anext__()
        warm = max(range(2), key=lambda index: after[index] - before[index])
        deployment.replicas[warm][0].kill()
        died = time.monotonic()
        await stream.__anext__()
        print(f"from kill -9 to the next piece: {time.monotonic() - died:.3f} s")  # noqa: T201  # `pytest -s`
        result = await stream.result()
        assert result.token_ids == whole.token_ids
        assert result.metrics.reconnects >= 1
        again = await (await two.generate(PROMPT, **params)).result()  # as if the dead one had never been
        assert again.token_ids == whole.token_ids
        async with httpx.AsyncClient(verify=_trusting(deployment)) as http:
            listed = await http.get(f"https://127.0.0.1:{deployment.https_port}/v1/models")
            assert listed.json()["data"][0]["id"] == "target"
            assert (await http.get(f"https://127.0.0.1:{deployment.https_port}/metrics")).status_code == 404


async def test_nobody_is_sent_to_one_that_drains(tmp_path: Path) -> None:
    """Neither by gRPC, where it refuses connections, nor by HTTP, where it says 503."""
    async with deployed(tmp_path) as deployment, deployment.client() as client:
        running = await client.generate(PROMPT, max_tokens=1500, temperature=0, ignore_eos=True)
        await running.__anext__()
        leaving, ready = deployment.replicas[(await deployment.opened()).index(1)]
        leaving.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(verify=_trusting(deployment), timeout=PATIENCE_S) as http:

            async def drains() -> bool:
                return (await http.get(f"{ready['http']}/readyz")).status_code == 503

            await until(drains)
            for number in range(6):
                fresh = await (await client.generate(f"# {number}", max_tokens=1)).result()
                assert fresh.metrics.reconnects == 0
                answer = await http.post(
                    f"https://127.0.0.1:{deployment.https_port}/v1/completions",
                    json={"model": "target", "prompt": f"# {number}", "max_tokens": 1},
                )
                assert answer.status_code == 200
        assert leaving.poll() is None  # all the while it has the first one's to go on with
        running.cancel()


async def test_what_takes_long_is_computed_once(tmp_path: Path) -> None:
    """An answer that is not streamed says nothing for long; the times are shorter here, in the same order."""
    asked = 0

    async def compute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        await reader.read()  # until nobody listens any more
        writer.close()

    deployment = Deployment(tmp_path)
    deployment.changes = {"proxy_next_upstream_timeout 10s": "proxy_next_upstream_timeout 1s"}
    deployment.changes |= {"proxy_read_timeout 1h": "proxy_read_timeout 2s"}
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            server = await asyncio.start_server(compute, "127.0.0.1", 0)
            stack.callback(server.close)
            where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            process: Any = None  # there is none
            deployment.replicas.append((process, {"address": f"grpc://{where}", "http": f"http://{where}"}))
        stack.enter_context(nginx(deployment))
        http = await stack.enter_async_context(httpx.AsyncClient(verify=_trusting(deployment), timeout=PATIENCE_S))
        answer = await http.post(f"https://127.0.0.1:{deployment.https_port}/v1/completions", json={"prompt": "x"})
    assert (answer.status_code, asked) == (504, 1)


def _trusting(deployment: Deployment) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(deployment.authority.cert))
