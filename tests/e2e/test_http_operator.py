"""What an operator reads: Prometheus metrics, the live page and its figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.metrics import ServerMetrics
from pilotfish_cloud.principal import ANYONE, Principal
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_core.errors import EngineFailure, Unauthenticated, UnknownModel
from pilotfish_core.messages import Open
from pilotfish_core.parameters import SamplingParams
from tests.e2e.conftest import Verifier, connected
from tests.e2e.http_doors import caller, door, gateway_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
PROMPT = "def quicksort(items):\n"


async def samples(address: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with httpx.AsyncClient() as raw:
        answer = await raw.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"pilotfish_{name}", tuple(sorted(labels.items()))


async def test_both_doors_are_counted(verifier: Verifier) -> None:
    async with door(verifier) as address:
        async with caller(address) as client:
            answer = await client.completions.create(
                model="target", prompt=PROMPT, max_tokens=20, extra_body={"ignore_eos": True}
            )
            with pytest.raises(Exception, match="tools is not supported"):
                await client.completions.create(model="target", prompt=PROMPT, extra_body={"tools": [1]})
        async with connected(verifier) as device:
            stream = await device.generate(PROMPT, max_tokens=12, temperature=0, ignore_eos=True)
            await stream.result()
        seen = await samples(address)
    assert answer.usage is not None
    for name, tokens in (("http", 20), ("grpc", 12)):
        assert seen[key("generations_opened_total", door=name)] == 1
        assert seen[key("generations_finished_total", door=name, reason="length")] == 1
        assert seen[key("generations_in_progress", door=name)] == 0
        assert seen[key("output_tokens_total", door=name)] == tokens
        assert seen[key("prompt_tokens_total", door=name)] == answer.usage.prompt_tokens
        for histogram in ("time_to_first_token_seconds", "queue_seconds", "generation_duration_seconds"):
            assert seen[key(f"{histogram}_count", door=name)] == 1
        assert seen[key("output_length_tokens_sum", door=name)] == tokens
        assert seen[key("commit_interval_seconds_count", door=name)] > 0
        assert seen[key("time_per_output_token_seconds_count", door=name)] == 1
    assert seen[key("http_requests_total", route="/v1/completions", status="200")] == 1
    assert seen[key("http_requests_total", route="/v1/completions", status="400")] == 1
    stats = verifier.engine.stats()
    assert seen[key("steps_total")] == stats.steps
    assert seen[key("step_duration_seconds_bucket", le="+Inf")] == seen[key("step_duration_seconds_count")]
    assert seen[key("committed_tokens_total")] == stats.committed_tokens
    assert seen[key("kv_blocks", state="free")] + seen[key("kv_blocks", state="kept")] == stats.blocks_total
    assert seen[key("prefix_cache_miss_tokens_total", reason="evicted")] == 0


async def test_an_answer_that_was_complete_took_no_time(verifier: Verifier) -> None:
    gateway = gateway_of(verifier)
    opening = Open(
        model="",
        tokenizer_hash=verifier.engine.tokenizer.hash,
        generation_id=bytes(16),
        attempt=1,
        prompt=(5, 6),
        params=SamplingParams(max_tokens=2, ignore_eos=True),
        output=(7, 8),
    )
    async with door(verifier) as address:
        stream = gateway.open(opening, ANYONE)
        events = [event async for event in stream]
        gateway.close(stream)
        seen = await samples(address)
    assert len(events) == 2  # opened, and the end
    assert seen[key("generations_finished_total", door="grpc", reason="length")] == 1
    assert 0 <= seen[key("generation_duration_seconds_sum", door="grpc")] < 60


async def test_what_ends_otherwise_is_counted_by_its_kind(verifier: Verifier) -> None:
    gateway = gateway_of(verifier)

    def opening(model: str) -> Open:
        return Open(
            model=model,
            tokenizer_hash=verifier.engine.tokenizer.hash,
            generation_id=bytes(16),
            attempt=1,
            prompt=(5, 6),
            params=SamplingParams(max_tokens=4),
        )

    async with door(verifier) as address:
        with pytest.raises(UnknownModel):
            gateway.open(opening("other"), ANYONE)
        gone = gateway.open(opening(""), ANYONE)
        gateway.close(gone)
        failed = gateway.open(opening(""), ANYONE, door="http")
        failed.fail(EngineFailure("no step"))
        gateway.close(failed)
        seen = await samples(address)
        async with httpx.AsyncClient(base_url=address) as raw:
            totals = (await raw.get("/status.json")).json()["generations"]
    assert seen[key("generations_refused_total", door="grpc", kind="unknown_model")] == 1
    assert seen[key("generations_finished_total", door="grpc", reason="abort")] == 1
    assert seen[key("generations_failed_total", door="http", kind="engine_failure")] == 1
    assert totals == {"in_progress": 0, "opened": 2, "finished": 0, "aborted": 1, "failed": 1, "refused": 1}


async def test_counters_by_draft_position(verifier: Verifier) -> None:
    async with door(verifier) as address, caller(address) as client:
        fields = {"model": "target", "prompt": PROMPT, "max_tokens": 40, "seed": 3}
        plain = await client.completions.create(**fields, extra_body={"ignore_eos": True})  # type: ignore[call-overload]
        prediction = {"type": "content", "content": plain.choices[0].text}
        before = await samples(address)
        answer = await client.completions.create(  # type: ignore[call-overload]
            **fields, extra_body={"ignore_eos": True, "prediction": prediction}
        )
        after = await samples(address)

    def grown(name: str, **labels: str) -> float:
        return after[key(name, **labels)] - before.get(key(name, **labels), 0.0)

    details = answer.usage.completion_tokens_details
    places = [dict(labels)["position"] for name, labels in after if name == "pilotfish_position_draft_tokens_total"]
    assert "1" in places
    accepted = sum(grown("position_accepted_tokens_total", position=place) for place in places)
    assert accepted == details.accepted_prediction_tokens == grown("accepted_tokens_total", source="device")
    drafted = sum(grown("position_draft_tokens_total", position=place) for place in places)
    assert drafted == accepted + details.rejected_prediction_tokens


async def test_tenants_are_named_only_if_asked_for(verifier: Verifier) -> None:
    def authenticate(authorization: str | None) -> Principal:
        return Principal(tenant="acme", cache_salt=b"acme")

    gateway = gateway_of(verifier)
    for asked in (False, True):
        metrics = ServerMetrics(gateway, tenant_labels=asked)
        async with door(verifier, authenticate=authenticate, metrics=metrics) as address:
            gateway.observer = metrics.generations
            async with caller(address) as client:
                await client.completions.create(model="target", prompt=PROMPT, max_tokens=2)
            async with httpx.AsyncClient(base_url=address) as raw:
                assert ("acme" in (await raw.get("/metrics")).text) is asked
                assert "acme" not in (await raw.get("/status.json")).text


@pytest.mark.parametrize(
    ("operator", "without", "with_one"), [("open", 200, 200), ("key", 401, 200), ("off", 404, 404)]
)
async def test_who_may_see_what_is_for_the_operator(
    verifier: Verifier, operator: str, without: int, with_one: int
) -> None:
    def authenticate(authorization: str | None) -> Principal:
        if authorization != "Bearer good":
            raise Unauthenticated("give a key")
        return ANYONE

    async with (
        door(verifier, authenticate=authenticate, operator=operator) as address,
        httpx.AsyncClient(base_url=address) as raw,
    ):
        for path in ("/", "/metrics", "/status.json"):
            assert (await raw.get(path)).status_code == without
            assert (await raw.get(path, headers={"authorization": "Bearer good"})).status_code == with_one
        assert (await raw.get("/livez")).status_code == (await raw.get("/readyz")).status_code == 200


async def test_openmetrics_if_it_is_accepted(verifier: Verifier) -> None:
    async with httpx.AsyncClient(headers={"accept": "application/openmetrics-text; version=1.0.0"}) as raw:
        answer = await raw.get(f"{verifier.http}/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert [*openmetrics.text_string_to_metric_families(answer.text)]  # type: ignore[no-untyped-call]


def families(gateway: Gateway, link: StateLink) -> set[str]:
    observer = gateway.observer
    text = ServerMetrics(gateway, link=link).exposition()[0].decode()
    gateway.observer = observer
    return {family.name + "_total" * (family.type == "counter") for family in text_string_to_metric_families(text)}


async def test_the_page_of_metrics_names_all_of_them(verifier: Verifier) -> None:
    existing = {name for name in families(gateway_of(verifier), verifier.server.link) if name.startswith("pilotfish_")}
    named = re.findall(r"^\| `(pilotfish_\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == existing


async def test_figures_of_the_page(verifier: Verifier) -> None:
    async with httpx.AsyncClient(base_url=verifier.http) as raw:
        answer = await raw.get("/status.json")
    figures = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert figures["model"] == "target"
    assert figures["kv_blocks"]["total"] == verifier.engine.stats().blocks_total
    assert figures["generations"].keys() == {"in_progress", "opened", "finished", "aborted", "failed", "refused"}


class _Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.elsewhere += [
            str(values[name]) for name in ("src", "href") if str(values.get(name, "")).startswith("http")
        ]


async def test_the_page_needs_nothing_from_elsewhere(verifier: Verifier) -> None:
    async with httpx.AsyncClient(base_url=verifier.http) as raw:
        answer = await raw.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = _Ids()
    page.feed(answer.text)
    assert page.elsewhere == []
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r'(?:put|at|width)\("([\w-]+)"', answer.text))
    assert used <= set(page.ids)
