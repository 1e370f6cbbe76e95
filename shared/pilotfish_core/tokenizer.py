"""Tokenizers: text to ids and back, the canonical hash, and text that streams on character boundaries.

A thin layer over Hugging Face's `tokenizers`. Decoding is our own, because it must be the same in every
language and must stream: the text of some ids is the UTF-8 reading (errors replaced by U+FFFD, as WHATWG's
"maximal subpart" rule says) of the tokens' bytes, one after the other. Two families are known, which cover
what language models use: byte-level BPE (GPT-2, Llama 3, Qwen, the reference pair) and SentencePiece-like
vocabularies with U+2581 for spaces and optional byte fallback (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import codecs
import copy
import dataclasses
import functools
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from pilotfish_core.errors import InvalidRequest, ModelLoadError

HASH_HEADER: Final = b"pilotfish-tokenizer-v1\n"
TOKENIZER_FILE: Final = "tokenizer.json"
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ORDINARY: Final = 0
_SPECIAL: Final = 1


class Tokenizer:
    """A tokenizer and the end-token ids of the model it came with. Immutable, safe in several threads.

    ``eos_token_ids`` are those of generation_config.json (config.json where that has none) and of
    tokenizer_config.json beside the tokenizer; empty for one that came as bytes.
    """

    def __init__(self, json_bytes: bytes, *, eos_token_ids: Iterable[int] = (), source: str = "tokenizer") -> None:
        """Raises ModelLoadError, naming ``source``, when the bytes are no usable tokenizer.json."""
        try:
            inner = tokenizers.Tokenizer.from_buffer(json_bytes)
        except Exception as error:  # the library raises ValueError, TypeError or Exception itself
            raise ModelLoadError(f"{source} is not a usable tokenizer.json: {error}") from None
        inner.no_truncation()  # a saved truncation would silently cut prompts
        inner.no_padding()
        self._json = json_bytes
        self._inner = inner
        self._rule = _DecodingRule.of(inner, source)
        added: Mapping[int, Any] = inner.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self._names: dict[int, str] = {i: name for name, i in inner.get_vocab(True).items()}
        if not self._names:
            raise ModelLoadError(f"{source} has an empty vocabulary")
        self.eos_token_ids: tuple[int, ...] = tuple(sorted(set(eos_token_ids)))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a model folder or a tokenizer.json file. Raises ModelLoadError (file and reason)."""
        path = Path(path)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None
        tokenizer = cls(data, source=str(file))
        tokenizer.eos_token_ids = _end_tokens(file.parent, tokenizer)
        return tokenizer

    def to_json(self) -> bytes:
        """The tokenizer.json it was made of, byte for byte."""
        return self._json

    @functools.cached_property
    def vocab_size(self) -> int:
        """Highest id + 1, added tokens included. The embedding may have more rows; they are masked."""
        return max(self._names) + 1

    def limited_to(self, rows: int) -> Tokenizer:
        """This tokenizer for a model that embeds ``rows`` ids: ``vocab_size`` is at most that.

        Gemma 3 has special tokens (of images) beyond the embedding of its text models. Raises ValueError when an
        ordinary token lies there.
        """
        if any(token >= rows and token not in self.special_ids for token in self._names):
            raise ValueError(f"the vocabulary has {self.vocab_size} ids; expected at most {rows}")
        limited = copy.copy(self)
        vars(limited)["vocab_size"] = min(self.vocab_size, rows)  # where the cached property looks first
        return limited

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of ``text``. ``add_special_tokens`` lets the tokenizer put its own first (Llama's BOS).

        Raises InvalidRequest for text that is not Unicode (a lone surrogate).
        """
        try:
            ids: list[int] = self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeError):
            raise InvalidRequest("the text is not valid Unicode") from None
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """Text of ``ids``; ids without a token are skipped.

        ``continues``: the ids follow others (an answer follows its prompt), so the space that SentencePiece
        puts before the first word of a text is kept.
        """
        decoder = IncrementalDecoder(self, skip_special=skip_special, continues=continues)
        return "".join([decoder.push(token) for token in ids]) + decoder.flush()

    def token_bytes(self, token: int) -> bytes:
        """What ``token`` adds to the text: for byte-level BPE possibly part of a character.

        A special token gives the UTF-8 of its name. Raises ValueError for an id without a token.
        """
        try:
            return self._bytes[token]
        except KeyError:
            raise ValueError(f"token id {token} is not in the vocabulary") from None

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256, lower-case hex, of what the ids mean. Equal hashes: ids can be exchanged.

        Definition (version 1), all integers unsigned and little-endian. The hashed bytes are the header
        ``pilotfish-tokenizer-v1`` and a line feed, then one record for each id that has a token, ids
        ascending: id (4 bytes), kind (1 byte: 1 for a special token, else 0), length (4 bytes), bytes of
        the token. The bytes

        - of a special token (tokenizer.json ``added_tokens`` with ``special: true``) are its content in
          UTF-8;
        - in a byte-level vocabulary, each character mapped back by GPT-2's byte table. A token that has a
          character outside the table, or that is an added token only, is taken in UTF-8 as it stands;
        - in a SentencePiece-like one, ``<0xHH>`` is the byte HH where the decoder has ByteFallback; all
          others are UTF-8 with the replacement character (U+2581) turned into a space.

        Neither the merges, the normaliser nor the template count, nor the number of embedding rows.
        """
        header, special = struct.Struct("<IBI"), self.special_ids
        records = [HASH_HEADER]
        for token, data in sorted(self._bytes.items()):
            records += (header.pack(token, _SPECIAL if token in special else _ORDINARY, len(data)), data)
        return hashlib.sha256(b"".join(records)).hexdigest()

    @functools.cached_property
    def _bytes(self) -> dict[int, bytes]:
        in_model = set(self._inner.get_vocab(False).values())
        return {
            token: name.encode() if token in self.special_ids else self._rule.token(name, token in in_model)
            for token, name in self._names.items()
        }


class IncrementalDecoder:
    """Turns ids into text as they come. Text leaves only in whole characters.

    The pieces of ``push`` and the last one of ``flush``, joined, are ``Tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False) -> None:
        self._bytes = tokenizer._bytes
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_token = tokenizer._rule.strips_first_token and not continues
        self._strip_spaces = 0 if continues else tokenizer._rule.leading_spaces

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty inside a character, for skipped and for unknown ids."""
        data = self._bytes.get(token)
        if data is None or token in self._skipped:
            return ""
        if self._strip_token:
            self._strip_token = False
            data = data.replace(b" ", b"")
        return self._stripped(self._utf8.decode(data))

    def flush(self) -> str:
        """No more ids: what is left of an unfinished character, as U+FFFD."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip_spaces and text:
            if text[0] != " ":
                self._strip_spaces = 0
            else:
                text = text[1:]
                self._strip_spaces -= 1
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class _DecodingRule:
    """How a token's name becomes bytes, read from the ``decoder`` of tokenizer.json."""

    byte_level: bool = False
    byte_fallback: bool = False
    space: str | None = None  # the character that stands for a space
    leading_spaces: int = 0  # how many are dropped at the start of a text
    strips_first_token: bool = False  # Metaspace: the first token loses its spaces

    @classmethod
    def of(cls, inner: Any, source: str) -> _DecodingRule:
        """Raises ModelLoadError for a decoder of another family."""
        if inner.decoder is None:
            raise ModelLoadError(f"{source} has no decoder; a byte-level or SentencePiece-like one is needed")
        state = json.loads(inner.decoder.__getstate__())
        rule = cls()
        for part in state["decoders"] if state["type"] == "Sequence" else [state]:
            rule = rule._with(part, source)
        if not rule.byte_level and rule.space is None and not rule.byte_fallback:
            raise ModelLoadError(f"{source} has a decoder that is neither byte-level nor SentencePiece-like")
        return rule

    def _with(self, part: Mapping[str, Any], source: str) -> _DecodingRule:
        match part:
            case {"type": "ByteLevel"}:
                return dataclasses.replace(self, byte_level=True)
            case {"type": "ByteFallback"}:
                return dataclasses.replace(self, byte_fallback=True)
            case {"type": "Fuse"}:
                return self
            case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "} if len(space) == 1:
                return dataclasses.replace(self, space=space)
            case {"type": "Metaspace", "replacement": str(space)}:
                strips = part.get("prepend_scheme", "always") != "never"
                return dataclasses.replace(self, space=space, strips_first_token=strips)
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                return dataclasses.replace(self, leading_spaces=start)
        raise ModelLoadError(f"{source} has a decoder step that is not supported: {dict(part)}")

    def token(self, name: str, in_model: bool) -> bytes:
        """Bytes of an ordinary token; ``in_model``: in the model's vocabulary, not only added."""
        if self.byte_level:
            if not in_model or not _IN_TABLE.fullmatch(name):
                return name.encode()
            return name.translate(_TABLE).encode("latin-1")
        if self.byte_fallback and (found := _BYTE_TOKEN.fullmatch(name)):
            return bytes.fromhex(found[1])
        return (name if self.space is None else name.replace(self.space, " ")).encode()


def _byte_table() -> dict[int, str]:
    """GPT-2's map from printable characters back to bytes (as characters below 256)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    table = {byte: chr(byte) for byte in kept}
    return table | {256 + index: chr(byte) for index, byte in enumerate(moved)}


_TABLE: Final = _byte_table()
_IN_TABLE: Final = re.compile("[" + re.escape("".join(map(chr, _TABLE))) + "]*")


def _end_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """End-token ids from the configuration files beside a tokenizer; absent files are passed over."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        config = _read_json(folder / name)
        value = config.get("eos_token_id", _mapping(config.get("text_config")).get("eos_token_id"))
        ids = value if isinstance(value, list) else [value]
        found.update(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
        if found:
            break
    name_of_end = _read_json(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(name_of_end, dict):
        name_of_end = name_of_end.get("content")
    if isinstance(name_of_end, str):
        found.update(token for token, name in tokenizer._names.items() if name == name_of_end)
    return tuple(sorted(found))


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelLoadError(f"{file} is not JSON: {error}") from None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
