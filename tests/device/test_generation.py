from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish.generation import Generation
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
