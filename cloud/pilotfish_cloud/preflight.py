"""Everything that can be known to be wrong before the weights are loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.draft_offers import DraftOffers, folders_of
from pilotfish_cloud.engine.model_source import is_model_id
from pilotfish_cloud.shared_state.opening import check_state
from pilotfish_core.errors import InvalidParameter, MissingExtra, ModelLoadError, PilotfishError
from pilotfish_core.tokenizer import Tokenizer

_INDEX: Final = "model.safetensors.index.json"


def problems(config: ServerConfig) -> list[PilotfishError]:
    """All that is wrong, in the order in which a server would stumble over it."""
    found = []
    for look in _looks(config):
        try:
            look()
        except PilotfishError as error:
            found.append(error)
    return found


def _looks(config: ServerConfig) -> Iterator[Callable[[], Any]]:
    yield functools.partial(check_parts, config)
    for folder in (config.model, config.draft_model):
        if folder is not None:
            yield functools.partial(check_folder, folder)
    yield functools.partial(_tokenizers_agree, config)
    yield functools.partial(check_drafts, config)


def check_parts(config: ServerConfig) -> None:
    """Ports, keys, tenants, secret, certificates, the demo and extras. Raises PilotfishError."""
    try:
        from pilotfish_cloud.http.demo import Demo
        from pilotfish_cloud.server import authenticator_of, certificates_of, check_ports
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "grpc", "cloud", "pilotfish-cloud serve") from None
    check_ports(config)
    authenticator_of(config)
    certificates_of(config)
    check_state(config)
    if config.demo is not None:
        Demo.load(config.demo)
    if config.trace is not None and not config.trace.absolute().parent.is_dir():
        raise InvalidParameter.of("--trace", str(config.trace), "a file in a folder that is there")
    if config.otlp_endpoint is not None:
        from pilotfish_cloud.tracing import check_tracing

        check_tracing(config.otlp_endpoint)


def check_folder(folder: Path) -> None:
    """Whether a model folder has what it must have. Raises ModelLoadError; the loader looks more closely. A Hugging
    Face id is not asked for: that may download gigabytes.
    """
    if is_model_id(str(folder)):
        return
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder, nor a Hugging Face id (owner/name)")
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    if (folder / _INDEX).is_file():
        names[2:] = sorted({str(name) for name in _object(folder / _INDEX).get("weight_map", {}).values()})
    for name in names:
        if not (folder / name).is_file():
            raise ModelLoadError(f"{folder / name} is missing")
    if not isinstance(_object(folder / "config.json").get("model_type"), str):
        raise ModelLoadError(f"{folder / 'config.json'} names no model_type")
    Tokenizer.load(folder)


def _tokenizers_agree(config: ServerConfig) -> None:
    if config.draft_model is None or not config.draft_model.is_dir() or not config.model.is_dir():
        return
    target, draft = Tokenizer.load(config.model), Tokenizer.load(config.draft_model)
    if target.hash != draft.hash:
        raise ModelLoadError(
            f"{config.draft_model} and {config.model} have different tokenizers: a draft model must share its target's "
            "vocabulary"
        )


def check_drafts(config: ServerConfig) -> None:
    """Raises InvalidParameter, ModelLoadError for draft models on offer that no device could use."""
    if config.drafts is not None and config.model.is_dir():
        DraftOffers.load(folders_of(config.drafts), Tokenizer.load(config.model).hash)


def _object(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return values
