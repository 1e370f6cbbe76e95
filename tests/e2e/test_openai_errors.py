"""What callers see when something is wrong: OpenAI's exceptions, statuses, bodies and headers."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import httpx
import openai
import pytest

from pilotfish_cloud.engine.interface import OpenRequest
from pilotfish_cloud.principal import Principal
from pilotfish_core.errors import EngineFailure, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from pilotfish_openai.errors import KIND_HEADER
from tests.e2e.conftest import Verifier
from tests.e2e.http_doors import caller, door, gateway_of, watching

pytestmark = pytest.mark.asyncio(loop_scope="session")
ASK: dict[str, Any] = {"model": "target", "prompt": "def f(", "max_tokens": 4, "temperature": 0}
KEY = "pf_secret_that_no_log_may_show"


def authenticate(authorization: str | None) -> Principal:
    if authorization == f"Bearer {KEY}":
        return Principal(tenant="one", cache_salt=b"one")
    match authorization:
        case "Bearer busy":
            raise Overloaded("too many generations of yours are running", retry_after_s=1.2)
        case "Bearer barred":
            raise PermissionDenied("this key may not do that")
    raise Unauthenticated("an API key is needed: Authorization: Bearer KEY")


async def test_keys(verifier: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pilotfish_cloud")
    async with door(verifier, authenticate=authenticate) as address:
        async with caller(address, api_key=KEY) as client:
            assert (await client.completions.create(**ASK)).usage is not None
        for key, kind, status in (
            ("wrong", openai.AuthenticationError, 401),
            ("barred", openai.PermissionDeniedError, 403),
            ("busy", openai.RateLimitError, 429),
        ):
            async with caller(address, api_key=key) as client:
                with pytest.raises(kind) as caught:
                    await client.completions.create(**ASK)
                assert caught.value.status_code == status
                with pytest.raises(kind):
                    await client.models.list()
        assert isinstance(caught.value, openai.RateLimitError)
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["retry-after"] == "2"
        assert caught.value.response.headers["retry-after-ms"] == "1200"
        async with httpx.AsyncClient() as raw:
            answer = await raw.get(f"{address}/v1/models")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await raw.get(f"{address}/livez")).status_code == 200
    assert KEY not in caplog.text


async def test_a_refusal_at_admission_has_its_status(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: OpenRequest) -> None:
        raise Overloaded("the queue is full", retry_after_s=3)

    monkeypatch.setattr(verifier.engine, "open", refuse)
    async with caller(verifier.http) as client:
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="the queue is full"):
                await client.completions.create(**ASK, n=2, stream=stream)
    assert gateway_of(verifier).running == 0


async def test_errors_of_the_engine_before_anything_was_said_have_their_status(verifier: Verifier) -> None:
    for error, status in ((Unavailable("going down", retry_after_s=0), 503), (EngineFailure("no step"), 500)):
        with watching(verifier, lambda stream, error=error: stream.fail(error)):  # type: ignore[misc]
            async with caller(verifier.http) as client:
                for stream in (False, True):
                    with pytest.raises(openai.InternalServerError) as caught:
                        await client.completions.create(**ASK, stream=stream)
                    assert caught.value.status_code == status
                    assert caught.value.response.headers[KIND_HEADER] == error.kind
    assert gateway_of(verifier).running == 0


async def test_an_error_in_mid_stream_is_an_event(verifier: Verifier) -> None:
    with watching(verifier) as watcher:
        async with caller(verifier.http) as client:
            stream = await client.completions.create(**ASK | {"max_tokens": 400, "stream": True})
            assert (await anext(stream)).choices[0].text
            watcher.streams[0].fail(Unavailable("the machine is going away"))
            with pytest.raises(openai.APIError, match="the machine is going away") as caught:
                [chunk async for chunk in stream]
        assert caught.value.code == "unavailable"
        await watcher.until(lambda: watcher.ended == 1)


async def test_an_unexpected_error_tells_nothing_of_itself(
    verifier: Verifier, caplog: pytest.LogCaptureFixture
) -> None:
    with watching(verifier, lambda stream: stream.fail(ZeroDivisionError("private"))):
        async with caller(verifier.http) as client:
            with pytest.raises(openai.InternalServerError, match="failed unexpectedly") as caught:
                await client.completions.create(**ASK)
    assert "private" not in str(caught.value)
    assert "ZeroDivisionError: private" in caplog.text


@pytest.mark.parametrize(
    ("fields", "parameter", "code"),
    [
        ({"temperature": -1}, "temperature", "invalid_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_parameter"),
        ({"n": 500}, "n", "invalid_parameter"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "invalid_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo with logprobs", "unsupported_parameter"),
        ({"prompt": [10**6]}, "prompt", "invalid_parameter"),
        ({"prompt": [-1]}, "prompt", "invalid_parameter"),
        ({"prompt": [7] * 5000}, None, "context_length_exceeded"),
        ({"prompt": ""}, None, "invalid_parameter"),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "invalid_parameter"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format", "unsupported_parameter"),
        ({"extra_body": {"prediction": {"type": "content", "content": 7}}}, "prediction.content", "invalid_parameter"),
    ],
)
async def test_bad_requests(verifier: Verifier, fields: dict[str, Any], parameter: str | None, code: str) -> None:
    async with caller(verifier.http) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(**ASK | fields, stream=stream)
            assert (caught.value.param, caught.value.code) == (parameter, code)
            assert caught.value.type == "invalid_request_error"
            assert len(str(caught.value)) < 1000


async def test_an_unknown_model(verifier: Verifier) -> None:
    async with caller(verifier.http) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.completions.create(**ASK | {"model": "gpt-4"})
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


async def test_chat_needs_a_template(verifier: Verifier) -> None:
    async with caller(verifier.http) as client:
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            await client.chat.completions.create(model="target", messages=[{"role": "user", "content": "hi"}])


async def test_errors_of_http_itself_have_the_same_shape(verifier: Verifier) -> None:
    async with httpx.AsyncClient(base_url=verifier.http) as raw:
        for answer, status in (
            (await raw.get("/v2/nothing"), 404),
            (await raw.get("/v1/completions"), 405),
            (await raw.post("/v1/completions", content=b"{"), 400),
            (await raw.post("/v1/completions", content=b"x" * (5 * 2**20)), 413),
            (await raw.post("/v1/embeddings", json={}), 404),
        ):
            assert answer.status_code == status
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
            assert len(answer.headers["x-request-id"]) == 16
        named = await raw.get("/livez", headers={"x-request-id": "mine-7"})
        assert named.headers["x-request-id"] == "mine-7"
        assert (await raw.get("/v1/completions")).headers["allow"] == "POST"

        async def endless() -> Any:
            for _ in range(100):
                yield b"x" * 2**20

        with contextlib.suppress(httpx.NetworkError):  # closed before all was sent, the answer is lost with it
            assert (await raw.post("/v1/completions", content=endless())).status_code == 413
        assert (await raw.get("/livez")).status_code == 200


async def test_ignored_fields_are_named(verifier: Verifier) -> None:
    async with caller(verifier.http) as client:
        answer = await client.completions.with_raw_response.create(**ASK, user="me", extra_body={"shiny": 1})
        assert answer.headers["x-pilotfish-ignored"] == "shiny, user"
