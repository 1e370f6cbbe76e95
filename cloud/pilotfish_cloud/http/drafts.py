"""Files of the draft models on offer, for devices: whole or from a byte on (Range), to whoever has a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from pilotfish_cloud.draft_offers import DraftOffers
from pilotfish_cloud.http.door import Authenticate
from pilotfish_openai.errors import json_response


def draft_routes(offers: DraftOffers, authenticate: Authenticate) -> APIRouter:
    """The routes under /v1/drafts."""
    router = APIRouter(prefix="/v1/drafts")

    @router.get("")
    async def offered(request: Request) -> Response:
        authenticate(request.headers.get("authorization"))
        return json_response(
            {
                "drafts": [
                    {
                        "name": draft.name,
                        "runtime": draft.runtime,
                        "quant": draft.quant,
                        "context_length": draft.context_length,
                        "match": dict(draft.match),
                        "files": {
                            name: {"size": file.size, "sha256": file.sha256.hex()}
                            for name, file in sorted(draft.files.items())
                        },
                    }
                    for draft in offers.drafts
                ]
            }
        )

    @router.get("/{draft}/{name:path}")
    async def file(request: Request, draft: str, name: str) -> Response:
        authenticate(request.headers.get("authorization"))
        found = offers.file(draft, name)
        if found is None or not found.path.is_file():
            raise HTTPException(404, "no such file of a draft model")
        # By its contents, so that a download is never continued with those of another file.
        headers = {"etag": f'"{found.sha256.hex()}"', "cache-control": "private, max-age=31536000, immutable"}
        return FileResponse(found.path, media_type="application/octet-stream", headers=headers)

    return router
