"""The corpus split and the training windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reference.corpus import CorpusError, Windows, documents, split_of


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for number in range(200):
        file = tmp_path / f"package{number % 7}" / f"module{number}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"VALUE = {number}\n", encoding="utf-8")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("skipped = True\n", encoding="utf-8")
    (tmp_path / "copy.py").write_text("VALUE = 3\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "empty.py").write_text("\n", encoding="utf-8")
    return tmp_path


def test_split_is_a_partition_by_path(library: Path) -> None:
    train = list(documents("train", library))
    heldout = list(documents("heldout", library))
    paths = [document.path for document in (*train, *heldout)]
    assert len(paths) == len(set(paths)) == 200
    assert 0 < len(heldout) < 20
    assert all(split_of(document.path) == "heldout" for document in heldout)
    assert [document.path for document in train] == sorted(document.path for document in train)


def test_split_never_changes() -> None:
    assert split_of("pprint.py") == "heldout"
    assert split_of("operator.py") == "heldout"
    assert split_of("heapq.py") == "train"


def test_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        list(documents("train", tmp_path))
    with pytest.raises(CorpusError):
        list(documents("train", tmp_path / "missing"))


def test_windows_shift_and_resume() -> None:
    docs = [np.arange(start, start + 50, dtype=np.uint16) for start in range(0, 1000, 50)]
    windows = Windows(docs, seed=3)
    first = windows.batch(4, 16)
    assert first.shape == (4, 17)
    assert (first[:-1, -1] == first[1:, 0]).all()
    for _ in range(30):
        windows.batch(4, 16)
    state = windows.state()
    resumed = Windows(docs, seed=3)
    resumed.restore(state)
    assert (windows.batch(2, 32) == resumed.batch(2, 32)).all()
    assert windows.epochs == resumed.epochs > 1.0
    assert (Windows(docs, seed=3).batch(4, 16) == first).all()


def test_every_token_once_an_epoch() -> None:
    docs = [np.arange(start, start + 10, dtype=np.uint16) for start in range(0, 100, 10)]
    windows = Windows(docs, seed=0)
    seen = np.concatenate([windows.batch(1, 9)[:, :-1].ravel() for _ in range(11)])
    assert len(set(seen.tolist())) == 99
