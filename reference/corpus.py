"""The corpus: the Python standard library of the interpreter the recipe runs on.

Files are listed in sorted order and split by a hash of their relative path, so that every run of
the same interpreter version sees the same two halves. No corpus text is ever stored in the
repository.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Split = Literal["train", "heldout"]
Tokens = npt.NDArray[np.uint16]

HELDOUT_PERCENT = 3
"""About this many files in a hundred are held out."""

_SKIPPED_PARTS = frozenset({"site-packages", "dist-packages", "__pycache__", "pydoc_data"})
_TABLE_MARK = "decoding_table = ("


class CorpusError(Exception):
    """The corpus cannot be read or is empty."""


@dataclass(frozen=True)
class Document:
    """One source file: its path relative to the standard library (posix) and its text."""

    path: str
    text: str


def split_of(path: str) -> Split:
    """The split a relative posix path belongs to; depends on nothing but the path."""
    digest = hashlib.sha256(path.encode("utf-8")).digest()
    value = int.from_bytes(digest[:8], "big") % 100
    return "heldout" if value < HELDOUT_PERCENT else "train"


def documents(split: Split, root: Path | None = None) -> Iterator[Document]:
    """Yield the documents of `split` in path order.

    Skipped: installed packages, the generated help text, the codec tables (numbers, not code),
    files that are not UTF-8, empty files and exact copies of an earlier file.
    """
    base = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    if not base.is_dir():
        raise CorpusError(f"no such corpus folder: {base}")
    seen: set[bytes] = set()
    found = 0
    for file in sorted(base.rglob("*.py"), key=lambda item: item.relative_to(base).as_posix()):
        relative = file.relative_to(base)
        if _SKIPPED_PARTS.intersection(relative.parts):
            continue
        try:
            text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        if not text.strip() or _TABLE_MARK in text or digest in seen:
            continue
        seen.add(digest)
        path = relative.as_posix()
        if split_of(path) == split:
            found += 1
            yield Document(path, text)
    if not found:
        raise CorpusError(f"no {split} documents under {base}")


def encode_documents(tokenizer: Tokenizer, split: Split, root: Path | None = None) -> list[Tokens]:
    """Encode every document of `split`; each array (length,) ends with the end token, id 0."""
    docs = list(documents(split, root))
    encodings = tokenizer.encode_batch([doc.text for doc in docs], add_special_tokens=False)
    return [np.array([*encoding.ids, 0], dtype=np.uint16) for encoding in encodings]


class Windows:
    """Endless shuffled training windows over a list of documents.

    Each epoch shuffles the documents, joins them, drops a random head and cuts the rest into
    windows. The sequence of batches is a function of (documents, seed) and the sizes asked for.
    """

    def __init__(self, docs: list[Tokens], seed: int) -> None:
        """Keep `docs` (arrays of token ids) and start at epoch 0."""
        if not docs:
            raise CorpusError("no documents to train on")
        self.total = sum(len(doc) for doc in docs)
        self.consumed = 0
        self._docs = docs
        self._seed = seed
        self._epoch = -1
        self._stream: Tokens = np.empty(0, dtype=np.uint16)
        self._cursor = 0

    @property
    def epochs(self) -> float:
        """How often the corpus has been read so far."""
        return self.consumed / self.total

    def batch(self, rows: int, length: int) -> npt.NDArray[np.int64]:
        """The next (rows, length + 1) token ids: inputs and, shifted by one, labels.

        The rows come from distant places of the epoch's stream.
        """
        need = rows * length + 1
        if self._cursor + need > len(self._stream):
            self._shuffle(self._epoch + 1)
            while len(self._stream) < need:
                self._stream = np.concatenate([self._stream, self._stream])
        piece = self._stream[self._cursor : self._cursor + need].astype(np.int64)
        self._cursor += rows * length
        self.consumed += rows * length
        return np.stack([piece[row * length : (row + 1) * length + 1] for row in range(rows)])

    def state(self) -> dict[str, int]:
        """Where the sequence of batches stands, for `restore`."""
        return {"epoch": self._epoch, "cursor": self._cursor, "consumed": self.consumed}

    def restore(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken (same documents, same seed)."""
        self._shuffle(state["epoch"])
        self._cursor = state["cursor"]
        self.consumed = state["consumed"]

    def _shuffle(self, epoch: int) -> None:
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._docs))
        stream = np.concatenate([self._docs[index] for index in order])
        self._stream = np.roll(stream, -int(rng.integers(len(stream))))
        self._epoch = epoch
        self._cursor = 0
