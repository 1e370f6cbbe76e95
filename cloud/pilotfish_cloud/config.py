"""The verifier's configuration: one frozen object, validated once, from a file, the environment and flags."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pilotfish_cloud.engine.model_source import is_model_id
from pilotfish_cloud.options import Layered, layered, option, options_of
from pilotfish_cloud.origins import ANY, Origins
from pilotfish_core.admission import ResumePolicy
from pilotfish_core.errors import InvalidParameter

DTYPES = ("float32", "bfloat16", "float16")
SPECULATIONS = ("goodput", "fixed")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
OPERATOR_ACCESS = ("open", "key", "off")
DEMO_FOLDER = Path(__file__).resolve().parents[2] / "mobile_demo" / "dist"  # of a clone


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What ``pilotfish-cloud serve`` was asked for. Ports 0 let the system choose.

    Each field is an option: in a file by its name (``key`` where that differs), in the environment as PILOTFISH_NAME,
    on the command line as --name. Raises InvalidParameter.
    """

    model: Path = option(
        dataclasses.MISSING,
        "folder of a Hugging Face model, or its id (owner/name)",
        metavar="MODEL",
        positional=True,
        model=True,
    )
    served_model_name: str = option(
        dataclasses.MISSING, "name that devices ask for (default: the folder's name)", metavar="NAME"
    )
    host: str = option("127.0.0.1", "address to bind")
    port: int = option(50051, "gRPC port; 0: any free one", low=0, high=65535)
    http_port: int = option(8000, "HTTP port; 0: any free one", low=0, high=65535)
    dtype: str = option("float32", "numbers to compute with", choices=DTYPES)
    device: str = option("cpu", "where the engine computes: cpu, cuda or cuda:1")
    deterministic: bool = option(False, "the same bits for a token whatever the batch, draft and replica")
    threads: int = option(1, "CPU threads of the engine", low=1, high=1024)
    engine_process: bool = option(True, "run the engine in a process of its own")
    max_model_len: int | None = option(None, "longest prompt + output (default: the model's context)")
    max_num_seqs: int = option(64, "generations in one batch", low=1, high=4096)
    max_num_batched_tokens: int = option(512, "rows in one step", low=16, high=65536)
    max_draft_tokens: int = option(32, "draft tokens held per generation", low=1, high=1024)
    speculation: str = option(
        "goodput",
        "verify as many draft tokens as raise the goodput and hold steps where that pays, or always all, no holds",
        choices=SPECULATIONS,
    )
    hold_cap_ms: float = option(
        50.0, "the longest hold of a step, milliseconds", key="hold_cap", metavar="MS", low=0, high=10_000
    )
    draft_model: Path | None = option(
        None,
        "a small model of the same tokenizer that drafts in the cloud for devices that do not",
        metavar="MODEL",
        model=True,
    )
    drafts: str | None = option(
        None,
        "exported draft models that devices may fetch over HTTP, the best first (`pilotfish export`; draft='auto')",
        metavar="DIR[,DIR...]",
    )
    http_url: str | None = option(
        None, "where devices reach the HTTP port, if not at this host and port, as https://host", metavar="URL"
    )
    # -- devices in browsers
    allow_origins: tuple[str, ...] = option(
        (),
        "pages of this origin may speak to the verifier too, as https://app.example; give it again for more; *: all, "
        "only where no keys are asked for",
        key="allow_origin",
        metavar="ORIGIN",
    )
    demo: Path | None = option(
        None,
        "serve the demo, a page that is a device, under /demo/; without DIR the one that is built in this clone",
        metavar="DIR",
        bare=DEMO_FOLDER,
    )
    max_unacknowledged: int = option(512, "committed tokens that a device may leave unacknowledged", low=1, high=2**20)
    # -- limits
    max_generations: int = option(256, "generations that run or wait, of all callers", low=1, high=2**20)
    max_total_tokens: int = option(2**22, "tokens of prompts and answers that run or wait", low=1, high=2**40)
    # -- security
    keys_file: Path | None = option(None, "API keys, made by `pilotfish-cloud keys create`", metavar="FILE")
    tenants_file: Path | None = option(None, "limits and settings of tenants, TOML", metavar="FILE")
    secret_file: Path | None = option(
        None, "32 random bytes or more that all replicas share, for salts and tickets", metavar="FILE"
    )
    resume: str = option(
        "trust", "whether devices may go on with tokens that they claim to hold", choices=tuple(ResumePolicy)
    )
    tls_cert: Path | None = option(None, "certificate chain, PEM; TLS on both ports", metavar="FILE")
    tls_key: Path | None = option(None, "its private key, PEM", metavar="FILE")
    tls_client_ca: Path | None = option(
        None, "only clients with a certificate of these authorities, PEM", metavar="FILE"
    )
    insecure: bool = option(False, "allow a bind beyond loopback without keys and TLS")
    pad_frames: bool = option(False, "pad frames to size classes, because sizes leak text")
    # -- several replicas
    redis_url: str | None = option(
        None, "Redis that all replicas share: redis://, rediss:// (TLS) or unix:// (default: none)", metavar="URL"
    )
    redis_password_file: Path | None = option(None, "its password", metavar="FILE")
    redis_ca: Path | None = option(None, "the authorities of its certificate, PEM", metavar="FILE")
    redis_required: bool = option(False, "do not begin without it; else a replica goes on alone")
    redis_timeout_ms: float = option(
        50.0,
        "the longest that a generation waits for it, milliseconds",
        key="redis_timeout",
        metavar="MS",
        low=1,
        high=10_000,
    )
    usage_journal: Path | None = option(
        None,
        "where usage that Redis has not heard waits for the next process, should this one be killed",
        metavar="FILE",
    )
    replica_name: str | None = option(None, "this replica's name (default: the host's and some digits)", metavar="NAME")
    # -- life
    shutdown_timeout_s: float = option(
        30.0, "seconds to finish in after SIGTERM", key="shutdown_timeout", metavar="SECONDS", low=0, high=86_400
    )
    reflection: bool = option(True, "gRPC server reflection")
    operator: str = option(
        "open",
        "the live page, its figures and /metrics: for all, for whoever has a key, or off",
        choices=OPERATOR_ACCESS,
    )
    tenant_metrics: bool = option(False, "name tenants in the metrics of generations")
    log_level: str = option("warning", "what is logged", choices=LOG_LEVELS)
    log_format: str = option("text", "how: lines for people, or JSON objects", choices=LOG_FORMATS)
    trace: Path | None = option(
        None, "when each step ran, how long and over what, for pilotfish-sim calibrate", metavar="FILE"
    )
    otlp_endpoint: str | None = option(
        None, "where traces go, as http://host:4317 (needs the extra otel)", metavar="URL"
    )

    def __post_init__(self) -> None:
        for entry in options_of(type(self)).values():
            entry.check(getattr(self, entry.field))
        if self.port == self.http_port != 0:
            raise InvalidParameter.of("--http-port", self.http_port, "another one than --port")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise InvalidParameter.of("--max-model-len", self.max_model_len, "at least 2: a prompt token and an answer")
        others = (self.redis_password_file, self.redis_ca, self.redis_required, self.usage_journal)
        if self.redis_url is None and any(others):
            raise InvalidParameter(
                "--redis-password-file, --redis-ca, --redis-required and --usage-journal need --redis-url"
            )
        if self.replica_name is not None and not (
            self.replica_name.isprintable() and 0 < len(self.replica_name) <= 100
        ):
            raise InvalidParameter.of("--replica-name", self.replica_name, "up to 100 printable characters")
        if self.http_url is not None and not _is_http_url(self.http_url):
            raise InvalidParameter.of("--http-url", self.http_url, "http://HOST[:PORT] or https://HOST[:PORT]")
        Origins(self.allow_origins)
        self._check_security()

    def _check_security(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidParameter("--tls-cert and --tls-key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidParameter("--tls-client-ca needs --tls-cert and --tls-key: clients show theirs over TLS")
        if self.resume == ResumePolicy.TICKET and self.secret_file is None:
            raise InvalidParameter(
                "--resume ticket needs --secret-file: a replica must know the tickets of the others, and its own after "
                "a restart"
            )
        if ANY in self.allow_origins and (self.keys_file is not None or self.tls_client_ca is not None):
            # A browser shows a client certificate for whatever page asks.
            raise InvalidParameter("--allow-origin * does not go with --keys-file or --tls-client-ca; name the origins")
        if self.insecure or is_loopback(self.host):
            return
        missing = [] if self.tls_cert is not None else ["TLS (--tls-cert, --tls-key)"]
        if self.keys_file is None and self.tls_client_ca is None:
            missing.append("keys (--keys-file, or --tls-client-ca)")
        if missing:
            raise InvalidParameter(
                f"--host {self.host} would serve beyond this machine without {' and '.join(missing)}; give them, bind "
                "127.0.0.1, or say --insecure if a proxy in front has both"
            )

    @classmethod
    def of(
        cls, *, file: Path | None, environment: Mapping[str, str], flags: argparse.Namespace
    ) -> tuple[ServerConfig, Layered]:
        """The configuration, and where each value came from. Raises InvalidParameter, FileFormatError."""
        found = layered(options_of(cls), file=file, environment=environment, flags=flags)
        values = dict(found.values)
        if "model" not in values and found.origins["demo"] == "--demo":
            raise InvalidParameter("give the model, before --demo, which takes what follows for its folder")
        if "model" not in values:
            raise InvalidParameter("give the model: MODEL, `model` in the configuration file, or PILOTFISH_MODEL")
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = value.expanduser()
        values.setdefault("served_model_name", _name_of(values["model"]))
        return cls(**values), found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_http_url(text: str) -> bool:
    """With a host, and at most a path after it."""
    if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", text):
        return False
    try:
        parts = urlsplit(text)
        port = parts.port  # raises for what is none
    except ValueError:
        return False
    return bool(parts.hostname) and port != 0 and not parts.netloc.endswith(":")


def _name_of(model: Path) -> str:
    """A folder's name; a Hugging Face id as it is."""
    return str(model) if is_model_id(str(model)) else model.resolve().name
