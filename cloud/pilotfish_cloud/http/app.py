"""The FastAPI application: whether the process lives, and whether it takes work."""

from __future__ import annotations

from fastapi import FastAPI, Response

from pilotfish_cloud.gateway import Gateway


def create_app(gateway: Gateway) -> FastAPI:
    """The application for one gateway on the same event loop."""
    app = FastAPI(title="Pilotfish verifier", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str | int]:
        if gateway.draining:
            response.status_code = 503
        return {"status": "draining" if gateway.draining else "ready", "generations": gateway.running}

    return app
