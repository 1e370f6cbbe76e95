"""The FastAPI application: whether the process lives, and whether it takes work."""

from __future__ import annotations

from fastapi import FastAPI, Response

from pilotfish_cloud.service import VerifierService


def create_app(service: VerifierService) -> FastAPI:
    """The application for one service on the same event loop."""
    app = FastAPI(title="Pilotfish verifier", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str | int]:
        if service.draining:
            response.status_code = 503
        return {"status": "draining" if service.draining else "ready", "generations": service.running}

    return app
