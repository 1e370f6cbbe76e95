"""Responses that a caller may keep, and asks for again only to hear that they are still the same."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

ASK_AGAIN: Final = "no-cache"


def headers_of(digest: str, cache_control: str = ASK_AGAIN) -> dict[str, str]:
    """Of a response whose body has this digest."""
    return {"etag": f'"{digest}"', "cache-control": cache_control}


def not_modified(request: Request, digest: str) -> bool:
    """Whether the caller has it already."""
    given = request.headers.get("if-none-match", "")
    return f'"{digest}"' in {part.strip().removeprefix("W/") for part in given.split(",")}
