"""Who may go on with committed tokens: resume = trust, ticket or refuse, on real verifiers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pilotfish.generation import Generation
from pilotfish_core.errors import FileFormatError, ResumeRefused
from tests.e2e.conftest import Verifier, connected, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")
PARAMS: dict[str, Any] = {"max_tokens": 120, "temperature": 0.8, "seed": 9, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_text("0123456789abcdef" * 4, encoding="utf-8")
    file.chmod(0o600)
    return file


@contextlib.asynccontextmanager
async def pair(secret: Path, **options: Any) -> AsyncIterator[tuple[Verifier, Verifier]]:
    """Two replicas of one deployment."""
    async with serving(secret_file=secret, **options) as one, serving(secret_file=secret, **options) as two:
        yield one, two


async def cut_after(verifiers: tuple[Verifier, Verifier], tokens: int, **options: Any) -> Any:
    """An answer whose replica leaves in the middle of it, and the same answer undisturbed."""
    one, two = verifiers
    async with connected(one, server=[one.address, two.address], **options) as client:
        stream = await client.generate("def f(", **PARAMS)
        while len(stream.generation.output) < tokens:
            await stream.__anext__()
        await one.server.stop(0.0)
        result = await stream.result()
    async with connected(two, **options) as client:
        whole = await (await client.generate("def f(", **PARAMS)).result()
    return result, whole


@pytest.mark.parametrize("draft", [None, "ngram"])
async def test_any_replica_knows_the_ticket(secret: Path, draft: str | None) -> None:
    async with pair(secret, resume="ticket") as verifiers:
        result, whole = await cut_after(verifiers, 40, draft=draft)
        assert result.metrics.reconnects == 1
        assert result.token_ids == whole.token_ids


async def test_without_determinism_every_commit_has_a_ticket(secret: Path) -> None:
    async with pair(secret, resume="ticket", deterministic=False) as verifiers:
        result, _ = await cut_after(verifiers, 40)
        assert (len(result.token_ids), result.metrics.reconnects) == (120, 1)


async def begun(verifier: Verifier, tokens: int, file: Path) -> None:
    """Save an answer that has so many tokens at least."""
    async with connected(verifier) as client:
        stream = await client.generate("def f(", **PARAMS)
        while len(stream.generation.output) < tokens:
            await stream.__anext__()
        stream.cancel()
        await stream.result()
        stream.generation.save(file)


async def resumed(verifier: Verifier, generation: Generation | Path) -> Any:
    async with connected(verifier) as client:
        return await (await client.resume(generation)).result()


async def test_a_saved_generation_keeps_its_ticket(secret: Path, tmp_path: Path) -> None:
    file = tmp_path / "g.json"
    async with pair(secret, resume="ticket") as (one, two):
        await begun(one, 30, file)
        saved = Generation.load(file)
        assert saved.ticket is not None
        result = await resumed(two, file)
        async with connected(two) as client:
            assert result.token_ids == (await (await client.generate("def f(", **PARAMS)).result()).token_ids
        forged = Generation.load(file)
        forged.output[-1] ^= 1
        forged.output[0] ^= 1
        with pytest.raises(ResumeRefused, match="does not prove"):
            await resumed(two, forged)
        without = Generation.load(file)
        without.ticket = None
        with pytest.raises(ResumeRefused, match="there is none"):
            await resumed(two, without)
        longer = Generation.load(file)
        longer.output += [5] * 70  # more than would be decided again: claimed as it is
        with pytest.raises(ResumeRefused):
            await resumed(two, longer)


async def test_tenants_may_differ_from_the_server(secret: Path, tmp_path: Path, verifier: Verifier) -> None:
    file, tenants = tmp_path / "g.json", tmp_path / "tenants.toml"
    await begun(verifier, 20, file)
    assert Generation.load(file).ticket is None
    result = await resumed(verifier, file)  # trusted
    assert len(result.token_ids) == 120
    tenants.write_text("[default]\nresume = 'refuse'\n", encoding="utf-8")
    async with serving(tenants_file=tenants) as strict:
        with pytest.raises(ResumeRefused, match="does not go on"):
            await resumed(strict, file)
        async with connected(strict) as client:
            assert len((await (await client.generate("x", max_tokens=4, ignore_eos=True)).result()).token_ids) == 4


@pytest.mark.parametrize("ticket", [[], ["zz", 9], ["ab", 2], ["ab", 10**6], ["ab"], "ab", [1, 9]])
async def test_a_ticket_that_is_none_makes_a_file_damaged(tmp_path: Path, ticket: object, verifier: Verifier) -> None:
    file = tmp_path / "g.json"
    generation = Generation(prompt=(1, 2, 3), params=_params(), output=[4, 5, 6, 7, 8, 9, 10])
    body = generation._to_json() | {"ticket": ticket}
    file.write_text(_document(body), encoding="utf-8")
    with pytest.raises(FileFormatError, match="damaged"):
        Generation.load(file)
    body.pop("ticket")  # as older files are
    file.write_text(_document(body), encoding="utf-8")
    assert Generation.load(file).ticket is None


def _params() -> Any:
    from pilotfish_core.parameters import SamplingParams

    return SamplingParams(seed=1)


def _document(body: dict[str, Any]) -> str:
    import json

    from pilotfish.generation import FORMAT, FORMAT_VERSION, _digest

    document = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _digest(body), "generation": body}
    return json.dumps(document)
