"""What a device in a browser asks over HTTP, whose pages may ask, and the page that is served itself."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from pilotfish_cloud.catalogue import Catalogue
from pilotfish_cloud.http.demo import Demo
from pilotfish_cloud.http.websocket import WebSocketDoor
from pilotfish_cloud.keyring import create_key
from pilotfish_cloud.origins import Origins
from pilotfish_cloud.principal import ANYONE
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_openai.chat_template import ChatTemplate
from tests.e2e.conftest import TARGET, Verifier, serving
from tests.e2e.http_doors import TEMPLATE, door, gateway_of
from tests.e2e.raw_calls import opening
from tests.e2e.socket_calls import ask, key_protocol

pytestmark = pytest.mark.asyncio(loop_scope="session")
APP = "https://app.example"
GETS = ("describe", "tokenizer", "chat-template")


@contextlib.asynccontextmanager
async def browser(verifier: Verifier, *origins: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a door that admits these origins."""
    gateway = gateway_of(verifier)
    sockets = WebSocketDoor(gateway, Catalogue(gateway), lambda _: ANYONE, origins=Origins(origins))
    async with door(verifier, sockets=sockets, **options) as address, httpx.AsyncClient(base_url=address) as client:
        yield client


async def test_what_is_served(verifier: Verifier) -> None:
    template = ChatTemplate(TEMPLATE, {"bos_token": "<s>"})
    async with browser(verifier, chat_template=template) as client:
        described = await client.get("/pilotfish/v1/describe")
        message = json_format.Parse(described.text, pb.DescribeResponse())
        assert (message.protocol_version, message.models[0].name) == (1, "target")
        assert described.json()["models"][0]["maxModelLen"] == verifier.engine.info.max_model_len
        assert base64.b64decode(described.json()["models"][0]["tokenizerHash"]).hex() == verifier.engine.tokenizer.hash

        fetched = await client.get("/pilotfish/v1/tokenizer")
        assert fetched.content.count((TARGET / "tokenizer.json").read_bytes()) == 1
        assert fetched.json()["endTokenIds"] == list(verifier.engine.tokenizer.eos_token_ids)
        assert base64.b64decode(fetched.json()["tokenizerHash"]).hex() == verifier.engine.tokenizer.hash
        again = await client.get("/pilotfish/v1/tokenizer", headers={"if-none-match": fetched.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await client.get("/pilotfish/v1/tokenizer", params={"model": "other"})).status_code == 404

        chat = await client.get("/pilotfish/v1/chat-template")
        assert chat.json() == {"source": TEMPLATE, "specialTokens": {"bos_token": "<s>"}}
        plain = await client.get("/pilotfish/v1/generate")
        assert (plain.status_code, plain.headers["upgrade"]) == (426, "websocket")
    async with browser(verifier) as client:
        assert (await client.get("/pilotfish/v1/chat-template")).json() == {"source": "", "specialTokens": {}}


async def test_the_gets_ask_for_the_same_keys(tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.json", "one")
    async with serving(keys_file=tmp_path / "keys.json", demo=app(tmp_path / "app")) as guarded:
        async with httpx.AsyncClient(base_url=guarded.http) as client:
            for name in GETS:
                assert (await client.get(f"/pilotfish/v1/{name}")).status_code == 401
                headers = {"authorization": f"Bearer {key}"}
                assert (await client.get(f"/pilotfish/v1/{name}", headers=headers)).status_code == 200
            assert (await client.get("/demo/")).status_code == 200  # a page has no key before it is there
        said = await ask(guarded, [opening(guarded)], offers=("pilotfish.v1", key_protocol(key)), origin=guarded.http)
        assert said.code == 1000


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("{own}", 101),
        ("https{own_rest}", 101),  # TLS ends before us
        (APP, 101),
        ("https://app.example.evil", 403),
        ("http://app.example", 403),
        ("https://other.example", 403),
        ("null", 403),
        ("file://", 403),
    ],
)
async def test_whose_pages_may_open_a_socket(verifier: Verifier, origin: str | None, status: int) -> None:
    async with browser(verifier, APP) as client:
        own = str(client.base_url).rstrip("/")
        if origin is not None:
            origin = origin.format(own=own, own_rest=own.removeprefix("http"))
        if status == 101:
            assert (await ask(own, [opening(verifier, name=5)], origin=origin)).code == 1000
            return
        with pytest.raises(InvalidStatus) as refused:
            await ask(own, [opening(verifier, name=5)], origin=origin)
        assert refused.value.response.status_code == status
        assert refused.value.response.headers["x-pilotfish-error"] == "permission_denied"
        assert b"--allow-origin" in (refused.value.response.body or b"")


async def test_whose_pages_may_read(verifier: Verifier) -> None:
    asks = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    async with browser(verifier, APP) as client:
        for path in (*(f"/pilotfish/v1/{name}" for name in GETS), "/v1/drafts"):
            answer = await client.get(path, headers={"origin": APP})
            assert answer.headers["access-control-allow-origin"] == APP
            assert "origin" in answer.headers["vary"].lower()
            assert "etag" in answer.headers["access-control-expose-headers"]
            before = await client.options(path, headers={"origin": APP} | asks)
            assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, APP)
            assert "authorization" in before.headers["access-control-allow-headers"]
            other = await client.get(path, headers={"origin": "https://other.example"})
            assert "access-control-allow-origin" not in other.headers
        for path in ("/v1/models", "/status.json", "/metrics"):
            assert "access-control-allow-origin" not in (await client.get(path, headers={"origin": APP})).headers
    async with browser(verifier) as client:
        answer = await client.get("/pilotfish/v1/describe", headers={"origin": APP})
        assert "access-control-allow-origin" not in answer.headers
    async with browser(verifier, "*") as client:
        answer = await client.get("/pilotfish/v1/describe", headers={"origin": "https://any.example"})
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_sockets_are_counted(verifier: Verifier) -> None:
    async with browser(verifier) as client:
        own = str(client.base_url).rstrip("/")
        assert (await ask(own, [opening(verifier, name=6, max_tokens=12)])).code == 1000
        assert (await ask(own, [b"\xff"])).code == 4003
        wrong = opening(verifier, name=7)
        wrong.open.model = "other"
        assert (await ask(own, [wrong])).code == 4005
        with pytest.raises(InvalidStatus):
            await ask(own, [], origin="https://other.example")
        text = (await client.get("/metrics")).text
    seen = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert seen["pilotfish_generations_opened_total", "websocket"] == 1
    assert seen["pilotfish_generations_finished_total", "length", "websocket"] == 1
    assert seen["pilotfish_generations_refused_total", "unknown_model", "websocket"] == 1
    assert seen["pilotfish_output_tokens_total", "websocket"] == 12
    assert seen["pilotfish_generations_in_progress", "websocket"] == 0
    assert seen["pilotfish_time_to_first_token_seconds_count", "websocket"] == 1
    assert seen["pilotfish_http_requests_total", "/pilotfish/v1/generate", "101"] == 3
    assert seen["pilotfish_http_requests_total", "/pilotfish/v1/generate", "403"] == 1


# -- the demo ------------------------------------------------------------------------------------------------------


def app(folder: Path) -> Path:
    """What a build leaves, and what must not be had."""
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>demo</title>")
    (folder / "assets" / "main-A1B2C3D4.js").write_text("export {}")
    (folder / "assets" / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm" * 1000)
    (folder / "app.webmanifest").write_text("{}")
    (folder / ".env").write_text("SECRET")
    (folder.parent / "secret.txt").write_text("SECRET")
    (folder / "leads-out.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "sub").symlink_to(folder.parent)
    return folder


async def test_the_demo_is_isolated_typed_and_kept(verifier: Verifier, tmp_path: Path) -> None:
    async with browser(verifier, demo=Demo.load(app(tmp_path / "app"))) as client:
        page = await client.get("/demo/")
        assert page.text == "<!doctype html><title>demo</title>"
        types = {
            "/demo/": "text/html; charset=utf-8",
            "/demo/index.html": "text/html; charset=utf-8",
            "/demo/assets/main-A1B2C3D4.js": "text/javascript; charset=utf-8",
            "/demo/assets/ort-wasm-simd-threaded.wasm": "application/wasm",
            "/demo/app.webmanifest": "application/manifest+json",
        }
        for path, kind in types.items():
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
            assert answer.headers["cross-origin-opener-policy"] == "same-origin"
            assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert f"connect-src 'self' ws://{client.base_url.netloc.decode()} " in policy
            assert ("immutable" in answer.headers["cache-control"]) is ("A1B2C3D4" in path)
            again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["cross-origin-embedder-policy"] == "require-corp"
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
        moved = await client.get("/demo")
        assert (moved.status_code, moved.headers["location"]) == (307, "/demo/")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "..%2fsecret.txt",
        "%2e%2e/secret.txt",
        "assets/../../secret.txt",
        "..%5csecret.txt",
        "leads-out.txt",
        "sub/secret.txt",
        ".env",
        "/etc/passwd",
        "%00",
        "assets",
        "none.js",
        "index.html/",
    ],
)
async def test_nothing_beside_the_demo_can_be_had(verifier: Verifier, tmp_path: Path, name: str) -> None:
    async with browser(verifier, demo=Demo.load(app(tmp_path / "app"))) as client:
        url = httpx.URL(str(client.base_url)).copy_with(raw_path=b"/demo/" + name.encode())  # as it is
        answer = await client.get(url)
    assert answer.status_code == 404
    assert "SECRET" not in answer.text


async def test_without_a_build_it_says_how_to_make_one(verifier: Verifier, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidParameter, match=r"--demo is '.*make mobile-demo"):
            Demo.load(folder)
    async with browser(verifier) as client:
        assert (await client.get("/demo/")).status_code == 404
