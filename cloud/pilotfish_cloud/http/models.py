"""``GET /v1/models``: the one model that is served."""

from __future__ import annotations

from typing import Any

from pilotfish_cloud.gateway import Gateway


def model_list(gateway: Gateway, created: int) -> dict[str, Any]:
    """OpenAI's list."""
    return {"object": "list", "data": [model(gateway, created)]}


def model(gateway: Gateway, created: int) -> dict[str, Any]:
    """One entry; ``max_model_len`` as vLLM has it, ``system_fingerprint`` as responses carry it."""
    info = gateway.engine.info
    return {
        "id": gateway.served_model_name,
        "object": "model",
        "created": created,
        "owned_by": "pilotfish",
        "max_model_len": info.max_model_len,
        "system_fingerprint": info.fingerprint,
    }
