"""Where a model's folder is: on this machine, or on Hugging Face's hub, by way of its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pilotfish_core.errors import ModelLoadError

# What loading reads. Not the weights of other frameworks, nor a second copy in another layout, such as
# consolidated.safetensors.
_WANTED: Final = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "model*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.*",
)
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_model_id(name: str) -> bool:
    """Whether ``name`` is no path here and may be an id on Hugging Face."""
    return not Path(name).expanduser().exists() and _ID.fullmatch(name) is not None


def resolve_model(name: str) -> Path:
    """The local folder of a model: ``name`` itself, or what Hugging Face's cache holds under the id ``owner/name``.

    A folder of that name wins. Files that the cache lacks are downloaded, unless HF_HUB_OFFLINE is set; HF_HOME,
    HF_ENDPOINT and HF_TOKEN are honoured. Raises ModelLoadError when there is no such model or it cannot be fetched.
    May block for as long as a download takes.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.exists() or not _ID.fullmatch(name):
        raise ModelLoadError(f"{name!r} is neither a folder nor a Hugging Face id (owner/name)")
    from huggingface_hub import snapshot_download  # slow to import, and mostly not needed
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        found = Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except GatedRepoError:
        raise ModelLoadError(f"{name} is given only to those who accepted its terms: set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelLoadError(f"{name} is no folder here, and Hugging Face does not show a model of that name") from None
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{name} is no folder here, is not in Hugging Face's cache (HF_HOME), and cannot be fetched: the hub is "
            "not reachable, or HF_HUB_OFFLINE is set",
            private=repr(error),
        ) from None
    except Exception as error:  # whatever the hub, the network or a full disk lead to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(f"{name} cannot be fetched from Hugging Face: {reason}") from error
    if not (found / "config.json").is_file():
        raise ModelLoadError(f"{name}: the copy in Hugging Face's cache ({found}) has no config.json")
    return found
