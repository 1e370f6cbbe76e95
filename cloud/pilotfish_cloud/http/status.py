"""The operator's live page and the figures behind it. Totals only: nothing of a tenant, a prompt or an answer."""

from __future__ import annotations

import dataclasses
import importlib.resources
import time
from typing import Any, Final

from starlette.responses import Response

from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.metrics import ServerMetrics
from pilotfish_cloud.shared_state.link import StateLink

_PAGE: Final = "page.html"
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page() -> Response:
    """The page: one file without anything from elsewhere."""
    html = importlib.resources.files(__package__).joinpath(_PAGE).read_bytes()
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    return Response(html, headers=headers, media_type="text/html")


def figures(gateway: Gateway, metrics: ServerMetrics, link: StateLink | None = None) -> dict[str, Any]:
    """Totals since the start and what is held now; the page makes rates of two of them. ``now``: monotonic seconds."""
    stats, info = gateway.engine.stats(), gateway.engine.info
    verify = stats.verify
    return {
        "now": time.monotonic(),
        "model": gateway.served_model_name,
        "dtype": info.dtype,
        "deterministic": info.deterministic,
        "fingerprint": info.fingerprint,
        "draining": gateway.draining,
        "generations": {"in_progress": gateway.running} | dataclasses.asdict(metrics.generations.totals),
        "sequences": {"running": stats.running, "waiting": stats.waiting},
        "steps": {
            "count": stats.steps,
            "seconds": stats.step_seconds,
            "rows": {"prefill": stats.prefill_rows, "decode": stats.decode_rows, "draft": stats.draft_rows},
        },
        "committed_tokens": stats.committed_tokens,
        "verify": {
            "steps": verify.steps,
            "device": {"drafted": verify.draft_tokens, "accepted": verify.accepted_tokens},
            "cloud": {"drafted": verify.own_draft_tokens, "accepted": verify.own_accepted_tokens},
            "by_position": [list(pair) for pair in zip(verify.drafted_at, verify.accepted_at, strict=False)],
        },
        "kv_blocks": {"held": stats.blocks_held, "kept": stats.blocks_kept, "total": stats.blocks_total},
        "prefix_cache": {"hit_tokens": stats.cache_hit_tokens, "miss_tokens": stats.cache_miss_tokens},
        "preemptions": stats.preemptions,
        "holds": stats.holds,
        "failures": stats.failures,
        "replicas": [] if link is None else [dataclasses.asdict(line) for line in link.lines],
        "replicas_in_touch": link is None or link.in_touch,
    }
