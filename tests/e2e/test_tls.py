"""TLS and mutual TLS on both ports, and the one line that a device says when it cannot be."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from pilotfish_cloud.tls import Certificates
from pilotfish_core.errors import (
    FileFormatError,
    InvalidParameter,
    PilotfishError,
    Unauthenticated,
    Unavailable,
)
from tests.e2e.certificates import Certificate, issue
from tests.e2e.conftest import Verifier, connected, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")


class World:
    """Who is certified by whom, and files that a server reads."""

    def __init__(self, folder: Path) -> None:
        self.authority = issue(folder, "authority")
        self.other_authority = issue(folder, "other-authority")
        self.good = issue(folder, "good", self.authority)
        self.newer = issue(folder, "newer", self.authority)
        self.expired = issue(folder, "expired", self.authority, days=(-9, -1))
        self.elsewhere = issue(folder, "elsewhere", self.authority, hosts=("elsewhere.example",))
        self.client = issue(folder, "client", self.authority)
        self.stranger = issue(folder, "stranger", self.other_authority)
        self.cert, self.key = folder / "server.pem", folder / "server.key"
        self.use(self.good)

    def use(self, certificate: Certificate) -> None:
        shutil.copy(certificate.cert, self.cert)
        shutil.copy(certificate.key, self.key)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("certificates"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def secure(world: World) -> AsyncIterator[Verifier]:
    async with serving(tls_cert=world.cert, tls_key=world.key) as verifier:
        yield verifier


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mutual(world: World) -> AsyncIterator[Verifier]:
    async with serving(
        tls_cert=world.good.cert, tls_key=world.good.key, tls_client_ca=world.authority.cert
    ) as verifier:
        yield verifier


async def tokens(verifier: Verifier, scheme: str = "grpcs", **options: Any) -> int:
    async with connected(verifier, server=f"{scheme}://127.0.0.1:{verifier.server.port}", **options) as client:
        stream = await client.generate("def f(", max_tokens=4, temperature=0, ignore_eos=True)
        return len((await stream.result()).token_ids)


async def says(verifier: Verifier, kind: type[PilotfishError], *parts: str, **options: Any) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(kind) as caught:
            await tokens(verifier, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_an_answer_over_tls(secure: Verifier, world: World) -> None:
    assert await tokens(secure, ca=world.authority.cert) == 4


async def test_health_over_https(secure: Verifier, world: World) -> None:
    context = ssl.create_default_context(cafile=world.authority.cert)
    url = f"https://127.0.0.1:{secure.server.http_port}/readyz"
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(url)).json()["status"] == "ready"
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(url.replace("https", "http"))


async def test_a_certificate_of_an_unknown_authority(secure: Verifier, world: World) -> None:
    await says(secure, Unauthenticated, "not from an authority that this device trusts", ca=world.other_authority.cert)
    await says(secure, Unauthenticated, "not from an authority that this device trusts", "--ca")


async def test_without_tls_where_it_is_spoken_and_the_other_way_round(
    secure: Verifier, verifier: Verifier, world: World
) -> None:
    await says(secure, Unavailable, "does it speak TLS?", scheme="grpc")
    await says(verifier, Unauthenticated, "does not speak TLS", "grpc://127.0.0.1", ca=world.authority.cert)


async def test_certificates_are_read_again(secure: Verifier, world: World) -> None:
    trusted: dict[str, Any] = {"ca": world.authority.cert}
    try:
        for certificate, parts in (
            (world.expired, ["certificate has expired"]),
            (world.elsewhere, ["not for 127.0.0.1"]),
        ):
            world.use(certificate)
            secure.server.reload()
            await says(secure, Unauthenticated, *parts, **trusted)
        world.cert.write_text("nonsense", encoding="utf-8")
        secure.server.reload()
        await says(secure, Unauthenticated, "not for 127.0.0.1", **trusted)  # what was in force stays so
    finally:
        world.use(world.newer)
        secure.server.reload()
    assert await tokens(secure, **trusted) == 4
    context = ssl.create_default_context(cafile=world.authority.cert)
    _, writer = await asyncio.open_connection("127.0.0.1", secure.server.http_port, ssl=context)
    peer = writer.get_extra_info("peercert")
    writer.close()
    await writer.wait_closed()
    assert (("commonName", "newer"),) in peer["subject"]


async def test_mutual_tls(mutual: Verifier, world: World) -> None:
    trusted: dict[str, Any] = {"ca": world.authority.cert}
    assert await tokens(mutual, **trusted, cert=world.client.cert, key=world.client.key) == 4
    closed = "closes the connection at once; does it ask for a client certificate"
    await says(mutual, Unavailable, closed, **trusted)
    await says(mutual, Unavailable, closed, **trusted, cert=world.stranger.cert, key=world.stranger.key)
    context = ssl.create_default_context(cafile=world.authority.cert)
    url = f"https://127.0.0.1:{mutual.server.http_port}/livez"
    async with httpx.AsyncClient(verify=context) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(url)
    context.load_cert_chain(world.client.cert, world.client.key)
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(url)).status_code == 200


async def test_files_that_do_not_fit_are_named_before_anything_starts(world: World, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk", encoding="utf-8")
    for cert, key, client_ca, parts in (
        (world.good.cert, world.client.key, None, ["does not belong", str(world.client.key)]),
        (junk, world.client.key, None, [str(junk)]),
        (world.good.cert, junk, None, [str(junk)]),
        (tmp_path / "none", world.client.key, None, [str(tmp_path / "none"), "cannot be read"]),
        (world.good.cert, tmp_path / "none", None, [str(tmp_path / "none"), "cannot be read"]),
        (world.good.cert, world.good.key, junk, [str(junk), "client authorities"]),
        (world.good.cert, world.good.key, tmp_path / "none", [str(tmp_path / "none")]),
    ):
        with pytest.raises(FileFormatError) as caught:
            Certificates(cert, key, client_ca)
        for part in parts:
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"cert": "client.pem"}, "belong together"),
        ({"cert": "client.pem", "key": "good.key"}, "does not belong to cert"),
        ({"cert": "client.key", "key": "client.key"}, "not PEM"),
        ({"ca": "client.key"}, "no certificates in PEM"),
        ({"ca": "nothing"}, "ca .*nothing cannot be read"),
    ],
)
async def test_a_devices_files_that_do_not_fit(
    secure: Verifier, world: World, names: dict[str, str], message: str
) -> None:
    files: dict[str, Any] = {option: world.cert.parent / name for option, name in names.items()}
    with pytest.raises(InvalidParameter, match=message):
        await tokens(secure, **files)


async def test_certificates_for_a_plain_address(verifier: Verifier, world: World) -> None:
    await says(verifier, InvalidParameter, "say grpcs://", scheme="grpc", ca=world.authority.cert)
