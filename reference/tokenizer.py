"""The pair's tokenizer: byte-level BPE with 4,096 entries, trained on the training split."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from reference.corpus import documents

VOCAB_SIZE = 4096
END_TOKEN = "<|endoftext|>"
END_TOKEN_ID = 0
MAX_LENGTH = 2048


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train a byte-level BPE on `texts`; every string of any language round-trips.

    Digits are split one by one, and runs of spaces stay together up to the last one, so that a
    line's indentation is one token with the line break before it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder` (created if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "pad_token": END_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `folder`/tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}; run python -m reference.tokenizer")
    return Tokenizer.from_file(str(file))


def main() -> None:
    """Train the tokenizer on the training split and write it to a folder."""
    parser = argparse.ArgumentParser(prog="python -m reference.tokenizer", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write tokenizer.json into")
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(doc.text for doc in documents("train"))
    save_tokenizer(tokenizer, arguments.out)
    sys.stdout.write(f"{tokenizer.get_vocab_size()} entries -> {arguments.out}\n")


if __name__ == "__main__":
    main()
