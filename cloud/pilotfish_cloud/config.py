"""The verifier's configuration: one frozen object, validated once."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

from pilotfish_core.errors import InvalidParameter

DTYPES = ("float32", "bfloat16")
SPECULATIONS = ("goodput", "fixed")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What ``pilotfish-cloud serve`` was asked for. Ports 0 let the system choose.

    Raises InvalidParameter.
    """

    model: Path
    served_model_name: str
    host: str = "127.0.0.1"
    port: int = 50051
    http_port: int = 8000
    dtype: str = "float32"
    deterministic: bool = False
    threads: int = 1
    engine_process: bool = True  # else the engine is a thread of the server's process
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_draft_tokens: int = 32
    speculation: str = "goodput"
    hold_cap_ms: float = 50.0
    max_unacknowledged: int = 512
    shutdown_timeout_s: float = 30.0
    insecure: bool = False
    draft_model: Path | None = None  # folder of the model that drafts beside the target

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidParameter.of("--dtype", self.dtype, " or ".join(DTYPES))
        if self.speculation not in SPECULATIONS:
            raise InvalidParameter.of("--speculation", self.speculation, " or ".join(SPECULATIONS))
        if not 0 <= self.hold_cap_ms <= 10_000:
            raise InvalidParameter.of("--hold-cap", self.hold_cap_ms, "milliseconds in [0, 10000]")
        for name, low, high in (
            ("port", 0, 65535),
            ("http_port", 0, 65535),
            ("threads", 1, 1024),
            ("max_num_seqs", 1, 4096),
            ("max_num_batched_tokens", 16, 65536),
            ("max_draft_tokens", 1, 1024),
            ("max_unacknowledged", 1, 2**20),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidParameter.of(f"--{name.replace('_', '-')}", value, f"an integer in [{low}, {high}]")
        if self.port == self.http_port != 0:
            raise InvalidParameter.of("--http-port", self.http_port, "another one than --port")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise InvalidParameter.of("--max-model-len", self.max_model_len, "at least 2: a prompt token and an answer")
        if not self.shutdown_timeout_s >= 0:
            raise InvalidParameter.of("--shutdown-timeout", self.shutdown_timeout_s, "seconds, 0 or more")
        if not self.insecure and not is_loopback(self.host):
            raise InvalidParameter(
                f"--host {self.host} would serve beyond this machine without keys and TLS; "
                "bind 127.0.0.1, or say --insecure if a proxy in front has both"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
