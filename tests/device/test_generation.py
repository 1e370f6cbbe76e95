from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from pilotfish.generation import MAX_CLOCK_ATTEMPT, Generation, Shown
from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.errors import FileFormatError
from pilotfish_core.parameters import SamplingParams


def generation() -> Generation:
    return Generation(
        prompt=(1, 2, 3),
        params=SamplingParams(temperature=0.7, logit_bias=((5, -1.5),), stop=("x",), seed=2**63),
        model="m",
        tokenizer_hash="ab" * 32,
        attempt=3,
        output=[4, 5],
        fingerprint="pf-1",
        other_fingerprints=["pf-2"],
        shown=Shown(5, (6, 7)),
        finish=Finish(FinishReason.STOP, "x"),
    )


def test_a_saved_generation_comes_back_whole(tmp_path: Path) -> None:
    original = generation()
    original.save(tmp_path / "g.json")
    assert Generation.load(tmp_path / "g.json") == original
    assert [file.name for file in tmp_path.iterdir()] == ["g.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    original = generation()
    original.save(tmp_path / "g.json")
    broken = generation()
    broken.output.append(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        broken.save(tmp_path / "g.json")
    assert Generation.load(tmp_path / "g.json") == original
    assert [file.name for file in tmp_path.iterdir()] == ["g.json"]


def damage_nothing_but(document: dict[str, Any], **changes: Any) -> str:
    return json.dumps(document | changes)


@pytest.mark.parametrize("kind", ["missing", "cut", "not json", "other format", "version", "flipped", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g.json"
    generation().save(path)
    text = path.read_text()
    document = json.loads(text)
    contents = {
        "missing": None,
        "cut": text[: len(text) // 2],
        "not json": "hello",
        "other format": damage_nothing_but(document, format="zip"),
        "version": damage_nothing_but(document, version=2),
        "flipped": text.replace('"attempt": 3', '"attempt": 4'),
        "empty": "",
    }[kind]
    path.unlink()
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(FileFormatError, match=r"g\.json"):
        Generation.load(path)


def sealed(document: dict[str, Any]) -> str:
    """With the checksum of what it holds."""
    text = json.dumps(document["generation"], sort_keys=True, separators=(",", ":"))
    return json.dumps(document | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": []}, "params"),
        ({"params": {"temperature": "hot"}}, "temperature"),
        ({"finish": []}, "finish"),
        ({"finish": ["stop"]}, "finish"),
        ({"finish": ["stop", [1]]}, "finish"),
        ({"finish": ["nonsense", None]}, "nonsense"),
        ({"attempt": float("inf")}, "attempt"),
        ({"attempt": -1}, "attempt"),
        ({"attempt": 2**32}, "attempt"),
        ({"prompt": {}}, "prompt"),
        ({"unverified": {}}, "unverified"),
        ({"unverified": [1, "2"]}, "unverified"),
        ({"unverified": [-1]}, "unverified"),
        ({"id": 5}, ""),
        ({"id": "zz"}, ""),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_though_its_checksum_is_right(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "g.json"
    generation().save(path)
    document = json.loads(path.read_text())
    document["generation"] |= change
    path.write_text(sealed(document))
    with pytest.raises(FileFormatError, match=rf"g\.json is damaged: .*{named}"):
        Generation.load(path)


def test_a_file_without_something_and_a_deep_one(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    generation().save(path)
    document = json.loads(path.read_text())
    del document["generation"]["params"]
    path.write_text(sealed(document))
    with pytest.raises(FileFormatError, match="'params' is missing"):
        Generation.load(path)
    path.write_text("[" * 200_000)
    with pytest.raises(FileFormatError, match=r"g\.json cannot be read"):
        Generation.load(path)


@pytest.mark.parametrize("path", ["", "no/such/folder/g.json", "/proc/x", "n" * 300])
def test_a_place_that_cannot_be_written(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileFormatError, match="cannot be written"):
        generation().save(path or tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_an_older_version_is_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    original = generation()
    original.other_fingerprints, original.shown = [], None
    original.save(path)
    document = json.loads(path.read_text())
    body = document["generation"]
    del body["other_fingerprints"], body["unverified"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(document | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))
    loaded = Generation.load(path)
    assert loaded == original
    assert not loaded.mixed


@pytest.mark.parametrize(
    ("output", "undecided"),
    [
        ([4], (5, 6, 7)),
        ([4, 5, 6], (7,)),
        ([4, 5, 6, 7], ()),
        ([4, 5, 6, 7, 8], ()),
        ([4, 9], ()),  # the target went elsewhere
        ([4, 5, 9], ()),
    ],
)
def test_what_is_decided_is_not_unverified_any_more(
    tmp_path: Path, output: list[int], undecided: tuple[int, ...]
) -> None:
    """Another thread may save while tokens are put into the output, and what was shown is noted a moment later."""
    answer = generation()
    answer.output, answer.shown = output, Shown(4, (5, 6, 7))
    assert answer.unverified == undecided
    answer.save(tmp_path / "g.json")
    loaded = Generation.load(tmp_path / "g.json")
    assert (loaded.output, loaded.unverified) == (output, undecided)


def test_fingerprints_are_those_that_decided_tokens() -> None:
    answer = Generation(prompt=(1,), params=SamplingParams())
    assert list(answer.fingerprints) == []
    for fingerprint in ("pf-a", "pf-b"):
        answer.decided_under(fingerprint)
    assert list(answer.fingerprints) == ["pf-b"], "none of the first's was taken"
    answer.output.append(5)
    for fingerprint in ("pf-b", "pf-a", "pf-b", "pf-a"):
        answer.decided_under(fingerprint)
    assert list(answer.fingerprints) == ["pf-b", "pf-a"]
    assert answer.mixed


@pytest.mark.parametrize("year", [1970, 2026, 2100])
def test_attempts_of_a_resume_pass_those_after_the_save(monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    """The run after the save reconnected some times; the next one begins from the same file, a second later."""
    now = (year - 1970) * 365.25 * 86400.0
    monkeypatch.setattr(time, "time", lambda: now)
    first, second = (Generation(prompt=(1,), params=SamplingParams(), attempt=3) for _ in range(2))
    first.count_attempts_from_clock()
    assert first.attempt >= 3
    now += 1.0
    second.count_attempts_from_clock()
    if year == 2026:
        assert second.attempt >= first.attempt + 4
    assert first.attempt <= second.attempt <= MAX_CLOCK_ATTEMPT < 2**32


def test_attempts_never_go_back() -> None:
    answer = generation()
    answer.attempt = MAX_CLOCK_ATTEMPT + 7
    answer.count_attempts_from_clock()
    assert answer.attempt == MAX_CLOCK_ATTEMPT + 7
