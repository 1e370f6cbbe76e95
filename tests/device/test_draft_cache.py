"""Draft models kept on this device: bounded, never removed while in use, and not tried for ever."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotfish import draft_cache
from pilotfish.draft_cache import DraftCache
from pilotfish.draft_offers import DraftOffer, OfferedFile


def offer_of(name: str, size: int = 1000) -> DraftOffer:
    contents = contents_of(name, size)
    return DraftOffer(
        name=name,
        runtime="onnxruntime",
        quant="int8",
        context_length=64,
        match={},
        files={file: OfferedFile(len(data), hashlib.sha256(data).hexdigest()) for file, data in contents.items()},
        url="http://127.0.0.1:1",
    )


def contents_of(name: str, size: int) -> dict[str, bytes]:
    return {"manifest.json": name.encode(), "sub/model.onnx": bytes(size - len(name))}


def put(cache: DraftCache, name: str, *, used_at: float, size: int = 1000, part: bool = False) -> DraftOffer:
    """As it was fetched by a client that has ended."""
    offer = offer_of(name, size)
    folder = cache.path(offer.digest + (".part" if part else ""))
    for file, data in contents_of(name, size).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    mark = folder if part else cache.folder / f"{offer.digest}.use"
    if not part:
        mark.touch()
    os.utime(mark, (used_at, used_at))
    return offer


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DraftCache]:
    cache = DraftCache(tmp_path / "drafts", limit=3500)
    cache.folder.mkdir()
    yield cache
    cache.release()


def here(cache: DraftCache) -> set[str]:
    return {entry.name for entry in cache.folder.iterdir() if entry.is_dir()}


def test_what_was_used_the_longest_ago_goes_first(cache: DraftCache) -> None:
    a, b, c = (put(cache, name, used_at=at) for name, at in (("a", 300.0), ("b", 100.0), ("c", 200.0)))
    cache.make_room(offer_of("d"))
    assert here(cache) == {a.digest, c.digest}
    user = DraftCache(cache.folder)
    assert user.find(c.digest)
    user.release()
    put(cache, "d", used_at=400.0)
    assert cache.find(b.digest) is None
    cache.make_room(offer_of("e"))
    assert here(cache) == {c.digest, offer_of("d").digest}
    assert not list(cache.folder.glob(".gone-*"))


def test_what_fits_stays(cache: DraftCache) -> None:
    kept = {put(cache, name, used_at=1.0).digest for name in "abc"}
    cache.make_room(offer_of("a"))  # which is here already
    assert here(cache) == kept


def test_what_is_in_use_stays_however_old_it_is(cache: DraftCache) -> None:
    """By this client, another of this process, or another process."""
    a, b, c, d = (put(cache, name, used_at=float(index)) for index, name in enumerate("abcd"))
    other = DraftCache(cache.folder, limit=3500)
    assert cache.find(a.digest)
    assert other.find(b.digest)
    script = (
        "import sys, pathlib; from pilotfish.draft_cache import DraftCache; "
        "cache = DraftCache(pathlib.Path(sys.argv[1])); print(cache.find(sys.argv[2]), flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(cache.folder), c.digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert c.digest in process.stdout.readline()
        cache.make_room(offer_of("e", 3400))
        assert here(cache) == {a.digest, b.digest, c.digest}
        process.communicate("\n")
    other.release()
    cache.make_room(offer_of("e", 3400))
    assert here(cache) == {a.digest}
    assert d.digest not in here(cache)


def test_downloads_that_were_given_up_count_and_go_too(cache: DraftCache) -> None:
    put(cache, "a", used_at=1.0, part=True)
    b = put(cache, "b", used_at=2.0)
    cache.make_room(offer_of("c", 2000))
    assert here(cache) == {b.digest}
    own = put(cache, "c", used_at=0.0, part=True, size=2000)
    cache.make_room(own)
    assert here(cache) == {b.digest, f"{own.digest}.part"}


def test_nothing_else_in_the_folder_is_touched(cache: DraftCache) -> None:
    (cache.folder / "mine").mkdir()
    (cache.folder / "mine" / "data").write_bytes(bytes(10_000))
    (cache.folder / "last.json").write_text("{}")
    cache.make_room(offer_of("a", 3400))
    assert (cache.folder / "mine" / "data").exists()
    assert (cache.folder / "last.json").exists()


def test_what_is_of_no_use_is_remembered_until_the_runtime_is_another(
    cache: DraftCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = put(cache, "a", used_at=1.0)
    assert cache.is_whole(offer.digest)
    assert cache.refused(offer.digest) is None
    cache.refuse(offer.digest, "an operator that is not known")
    assert not here(cache)
    assert DraftCache(cache.folder).refused(offer.digest) == "an operator that is not known"
    assert cache.refused(offer_of("b").digest) is None
    monkeypatch.setattr(draft_cache, "_runtime", lambda: "99.0")
    assert cache.refused(offer.digest) is None


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}', "[" * 100_000])
def test_a_damaged_record_is_none(cache: DraftCache, text: str) -> None:
    (cache.folder / "bad.json").write_text(text)
    assert cache.refused("x") is None
    cache.refuse(offer_of("a").digest, "why")
    assert cache.refused(offer_of("a").digest) == "why"


def test_the_record_is_bounded(cache: DraftCache) -> None:
    for index in range(draft_cache.MAX_BAD + 5):
        cache.refuse(hashlib.sha256(str(index).encode()).hexdigest(), "why")
    assert len(json.loads((cache.folder / "bad.json").read_text())) == draft_cache.MAX_BAD
    assert cache.refused(hashlib.sha256(b"0").hexdigest()) is None


def test_only_what_is_damaged_is_to_be_fetched_again(cache: DraftCache) -> None:
    offer = put(cache, "a", used_at=1.0)
    (cache.path(offer.digest) / "manifest.json").write_bytes(b"x")
    (cache.path(offer.digest) / "another").write_bytes(b"x")
    assert not cache.is_whole(offer.digest)
    cache.repair(offer)
    part = cache.folder / f"{offer.digest}.part"
    assert [path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()] == ["sub/model.onnx"]
    assert not cache.path(offer.digest).exists()
