"""The built demo, a page that is a device, under /demo/. Nothing but the files that were there at the start."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from pilotfish_cloud.http.conditional import ASK_AGAIN, headers_of, not_modified
from pilotfish_core.errors import InvalidParameter

PATH: Final = "/demo/"
INDEX: Final = "index.html"
FOR_EVER: Final = "public, max-age=31536000, immutable"
HEADERS: Final = {
    # Isolated from all other pages, so that WebAssembly may have threads.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self'; manifest-src 'self'; connect-src 'self'{sockets}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HOST: Final = re.compile(r"[0-9A-Za-z.-]+(:[0-9]+)?|\[[0-9A-Fa-f:]+\](:[0-9]+)?")
_TYPES: Final = {  # by our own table: that of a system may say anything
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
_HASHED: Final = re.compile(r"-[0-9A-Z]{8}\.[0-9a-z.]+")  # how the demo's bundler names what has its hash in its name


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    path: Path
    digest: str  # SHA-256, hex

    @property
    def media_type(self) -> str:
        return _TYPES.get(self.path.suffix.lower(), "application/octet-stream")


class Demo:
    """The files of a built app, by the names that a browser asks for. Read once: after another build the server is to
    be started again.
    """

    def __init__(self, files: Mapping[str, _File]) -> None:
        self._files = dict(files)

    @classmethod
    def load(cls, folder: Path) -> Demo:
        """Raises InvalidParameter, saying how it is built, for a folder without a built app."""
        root = folder.expanduser()
        if not (root / INDEX).is_file():
            raise InvalidParameter.of(
                "--demo",
                str(folder),
                f"the folder of a built app, with an {INDEX}; in a clone `make mobile-demo` builds it",
            )
        files = {}
        inside = root.resolve()
        try:
            for parent, folders, names in os.walk(root):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(parent, name)
                    # A link out of the folder may lead to anything.
                    if name.startswith(".") or not path.resolve().is_relative_to(inside) or not path.is_file():
                        continue
                    with path.open("rb") as opened:
                        digest = hashlib.file_digest(opened, "sha256").hexdigest()
                    files[path.relative_to(root).as_posix()] = _File(path, digest)
        except OSError as error:
            raise InvalidParameter(f"--demo: {error.filename} cannot be read: {error.strerror or error}") from None
        return cls(files)

    def response(self, request: Request, name: str) -> Response:
        """Of one file; ``name`` as in the URL, empty for the page. Raises HTTPException for what there is not."""
        file = self._files.get(name or INDEX)
        if file is None or not file.path.is_file():
            raise HTTPException(404, "no such file of the demo")
        headers = HEADERS | headers_of(file.digest, FOR_EVER if _HASHED.search(file.path.name) else ASK_AGAIN)
        headers["content-security-policy"] = _policy(request.headers.get("host", ""))
        if not_modified(request, file.digest):
            return Response(status_code=304, headers=headers)
        return FileResponse(file.path, headers=headers, media_type=file.media_type)


def _policy(host: str) -> str:
    """Browsers differ in whether 'self' means the sockets of the page's own host too."""
    return _POLICY.format(sockets=f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else "")


def demo_routes(demo: Demo) -> APIRouter:
    """The routes under /demo/. They ask for no key: a page has none until somebody has typed one into it."""
    router = APIRouter()

    @router.get(PATH.rstrip("/"))
    async def slash() -> Response:
        return RedirectResponse(PATH)

    @router.api_route(PATH + "{name:path}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        return demo.response(request, name)

    return router
