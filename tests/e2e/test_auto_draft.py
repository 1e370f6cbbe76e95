"""``draft="auto"``: a real verifier offers an exported draft, and devices fetch, keep and use it."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from pilotfish.client import AsyncClient
from pilotfish.draft_download import DownloadProgress
from pilotfish.export import export_model
from pilotfish.result import Result
from pilotfish_cloud.draft_offers import DraftOffers
from pilotfish_cloud.keyring import create_key
from pilotfish_core.errors import InvalidParameter, ModelLoadError, PilotfishError
from pilotfish_core.modes import Hint
from tests.e2e.certificates import issue
from tests.e2e.conftest import ROOT, Verifier, connected, serving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
PROMPT = "import os\n\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n"
PARAMS: dict[str, Any] = {"temperature": 0.8, "max_tokens": 48, "seed": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafts") / "small-int8"
    return export_model(ROOT / "reference" / "draft", folder, quant="int8", text=PROMPT * 4).folder


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def offering(folder: Path) -> AsyncIterator[Verifier]:
    async with serving(drafts=str(folder)) as verifier:
        yield verifier


def cached(cache: Path) -> list[Path]:
    return [entry for entry in (cache / "drafts").glob("*") if entry.is_dir()]


async def answer(verifier: Verifier, **options: Any) -> Result:
    """With the draft model, once it is there."""
    async with connected(verifier, **{"draft": "auto", "arm": "device-async"} | options) as client:
        await client.prepare()
        return await (await client.generate(PROMPT, **PARAMS)).result()


async def test_the_offered_draft_is_fetched_used_and_kept(offering: Verifier, tmp_path: Path) -> None:
    seen: list[DownloadProgress] = []
    async with connected(offering) as alone:
        expected = await (await alone.generate(PROMPT, **PARAMS)).result()
    first = await answer(offering, on_download=seen.append)
    assert first.token_ids == expected.token_ids
    assert first.metrics.drafter == "onnx-int8"
    assert first.metrics.accepted_draft_tokens > 0
    assert (seen[-1].name, seen[-1].received) == ("small-int8", seen[-1].size)
    (kept,) = cached(tmp_path / "cache")
    before = (kept / "model.onnx").stat().st_mtime_ns
    seen.clear()
    again = await answer(offering, on_download=seen.append)
    assert again.metrics.drafter == "onnx-int8"
    assert not seen
    assert (kept / "model.onnx").stat().st_mtime_ns == before


async def test_the_first_answer_does_not_wait_for_it(offering: Verifier) -> None:
    async with connected(offering, draft="auto") as client:
        first = await (await client.generate(PROMPT, **PARAMS)).result()
        await client.prepare()
        second = await (await client.generate(PROMPT, **PARAMS)).result()
    assert (first.metrics.drafter, second.metrics.drafter) == ("ngram", "onnx-int8")
    assert first.token_ids == second.token_ids


async def test_a_metered_link_fetches_nothing(offering: Verifier, tmp_path: Path) -> None:
    result = await answer(offering, hint=Hint(metered_network=True))
    assert result.metrics.drafter == "ngram"
    assert not cached(tmp_path / "cache")


async def test_without_an_offer_prompt_lookup_drafts(verifier: Verifier) -> None:
    assert (await answer(verifier)).metrics.drafter == "ngram"


async def test_what_is_damaged_here_is_fetched_again(offering: Verifier, tmp_path: Path) -> None:
    await answer(offering)
    (kept,) = cached(tmp_path / "cache")
    data = bytearray((kept / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (kept / "model.onnx").write_bytes(data)
    assert (await answer(offering)).metrics.drafter == "onnx-int8"
    assert (kept / "model.onnx").read_bytes() != bytes(data)


async def test_of_what_is_damaged_here_only_that_is_fetched_again(offering: Verifier, tmp_path: Path) -> None:
    await answer(offering)
    (kept,) = cached(tmp_path / "cache")
    model = (kept / "model.onnx").stat().st_ino
    (kept / "tokenizer.json").write_bytes(b"{}")
    assert (await answer(offering)).metrics.drafter == "onnx-int8"
    assert (kept / "model.onnx").stat().st_ino == model
    assert (kept / "tokenizer.json").stat().st_size > 2


def broken_copy(folder: Path, copy: Path) -> Path:
    """A draft that is what its manifest says, and that no runtime loads."""
    shutil.copytree(folder, copy)
    data = b"no graph of any kind" * 1000
    (copy / "model.onnx").write_bytes(data)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


async def test_a_draft_that_does_not_load_is_not_fetched_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is what the verifier announced: another copy of it would not load either. The reason is said each time."""
    broken = broken_copy(folder, tmp_path / "broken")
    seen: list[DownloadProgress] = []
    async with serving(drafts=str(broken)) as verifier:
        assert (await answer(verifier, on_download=seen.append)).metrics.drafter == "ngram"
        assert seen
        assert "model.onnx" in caplog.text
        caplog.clear()
        seen.clear()
        assert (await answer(verifier, on_download=seen.append)).metrics.drafter == "ngram"
    assert not seen
    assert "broken was found to be of no use here" in caplog.text
    assert "model.onnx" in caplog.text
    assert not cached(tmp_path / "cache")


async def test_the_next_one_on_offer_is_taken_instead(folder: Path, tmp_path: Path) -> None:
    broken = broken_copy(folder, tmp_path / "broken")
    async with serving(drafts=f"{broken},{folder}") as verifier:
        assert (await answer(verifier)).metrics.drafter == "onnx-int8"
        assert (await answer(verifier)).metrics.drafter == "onnx-int8"


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


async def test_older_drafts_go_where_a_new_one_would_not_fit(
    offering: Verifier, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    manifest = json.loads((other / "manifest.json").read_text()) | {"model": "another name"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    size = size_of(other)
    await answer(offering)
    (first,) = cached(tmp_path / "cache")
    async with serving(drafts=str(other)) as verifier:
        assert (await answer(verifier, draft_cache_bytes=size - 100)).metrics.drafter == "ngram"
        assert "too large" in caplog.text
        assert cached(tmp_path / "cache") == [first]
        assert (await answer(verifier, draft_cache_bytes=size + 10_000)).metrics.drafter == "onnx-int8"
    (second,) = cached(tmp_path / "cache")
    assert second != first


async def test_a_draft_that_changes_behind_the_verifiers_back_is_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "drafts" / "small"
    shutil.copytree(folder, copy)
    async with serving(drafts=str(copy)) as verifier:
        data = bytearray((copy / "model.onnx").read_bytes())
        data[-1] ^= 1
        (copy / "model.onnx").write_bytes(data)
        result = await answer(verifier)
    assert result.metrics.drafter == "ngram"
    assert "SHA-256 is not what the verifier announced" in caplog.text
    assert not cached(tmp_path / "cache") or not (cached(tmp_path / "cache")[0] / "model.onnx").exists()


async def test_offline_from_the_start_with_the_draft_of_the_last_time(offering: Verifier, folder: Path) -> None:
    """The verifier cannot be asked; the device knows what it offered and writes on its own."""
    port = offering.server.port
    await answer(offering)
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        options: dict[str, Any] = {"offline": "draft", "on_reconnect": "keep", "offline_after_s": 0.2}
        gone = f"127.0.0.1:{taken.getsockname()[1]}"
        async with AsyncClient(gone, draft="auto", tokenizer=folder, **options) as client:
            with pytest.raises(PilotfishError):  # another verifier: nothing is known of it
                await (await client.generate(PROMPT, **PARAMS)).result()
        remembered = json.loads((_cache() / "drafts" / "last.json").read_text())
        moved = {key.replace(str(port), gone.rpartition(":")[2]): value for key, value in remembered.items()}
        (_cache() / "drafts" / "last.json").write_text(json.dumps(moved))
        async with AsyncClient(gone, draft="auto", **options) as client:
            result = await (await client.generate(PROMPT, **PARAMS)).result()
    assert result.metrics.drafter == "onnx-int8"
    assert len(result.token_ids) == 48
    assert not result.verified


def _cache() -> Path:
    from pilotfish.tokenizer_cache import cache_folder

    return cache_folder()


async def test_who_has_a_key_gets_files_and_ranges(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = create_key(keys, "acme")
    async with serving(drafts=str(folder), keys_file=keys) as verifier, httpx.AsyncClient() as http:
        url = f"{verifier.http}/v1/drafts"
        for path in ("", "/small-int8/model.onnx"):
            assert (await http.get(url + path)).status_code == 401
        http.headers["authorization"] = f"Bearer {key}"
        (listed,) = (await http.get(url)).json()["drafts"]
        data = (folder / "model.onnx").read_bytes()
        assert listed["files"]["model.onnx"]["size"] == len(data)
        assert 0 < listed["match"]["coupled_match"] <= 1
        part = await http.get(f"{url}/small-int8/model.onnx", headers={"range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, data[1000:2000])
        stale = {"range": "bytes=1000-", "if-range": '"another"'}
        assert (await http.get(f"{url}/small-int8/model.onnx", headers=stale)).content == data
        for path in ("small-int8/../../../etc/passwd", "small-int8/%2e%2e/%2e%2e/x", "other/model.onnx", "small-int8/"):
            assert (await http.get(f"{url}/{path}")).status_code == 404
        assert (await answer(verifier, api_key=key)).metrics.drafter == "onnx-int8"


async def test_over_mutual_tls(folder: Path, tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    server, device = issue(tmp_path, "server", authority), issue(tmp_path, "device", authority)
    tls = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.cert}
    async with serving(drafts=str(folder), **tls) as verifier:
        result = await answer(
            verifier,
            server=verifier.address.replace("grpc://", "grpcs://"),
            ca=authority.cert,
            cert=device.cert,
            key=device.key,
        )
    assert result.metrics.drafter == "onnx-int8"


async def test_offers_are_checked_before_they_are_made(folder: Path, tmp_path: Path) -> None:
    known = json.loads((folder / "manifest.json").read_text())["tokenizer_hash"]
    assert DraftOffers.load([folder.parent], known).names == ("small-int8",)  # a folder of folders
    with pytest.raises(ModelLoadError, match="share its target's vocabulary"):
        DraftOffers.load([folder], "0" * 64)
    with pytest.raises(InvalidParameter, match="pilotfish export"):
        DraftOffers.load([tmp_path], known)
    with pytest.raises(InvalidParameter, match="different names"):
        DraftOffers.load([folder, folder], known)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json has 2 bytes"):
        DraftOffers.load([copy], known)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"] = {"../secret": {"size": 1, "sha256": "00" * 32}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelLoadError, match="plain relative path"):
        DraftOffers.load([copy], known)
