"""The whole of what ``pilotfish bench`` was asked for, checked before anything is started."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shlex
from pathlib import Path
from typing import Any, Final

from pilotfish.addresses import parse_addresses
from pilotfish.bench import prompts
from pilotfish.bench.drafts import DraftChoice, DraftKind
from pilotfish.bench.link_process import LinkOptions
from pilotfish.bench.plan import DEVICE_ARMS, NEEDING_CLOUD_MODEL, Cell, arms_of, cells_of
from pilotfish.bench.values import integer, number
from pilotfish.demo.stage import LAYERS
from pilotfish.files import check_replaceable
from pilotfish_core.errors import InvalidParameter, MissingExtra
from pilotfish_core.modes import Arm
from pilotfish_core.parameters import SamplingParams

LOCAL: Final = "local"
STDOUT: Final = "-"  # of --json without a file
DEFAULT_PROMPTS: Final = 8
DTYPES: Final = ("float32", "bfloat16")
MAX_TIMES: Final = 10_000  # repeats and warm-ups


@dataclasses.dataclass(frozen=True, slots=True)
class LocalVerifier:
    """The verifier of ``--server local``. ``flags``: as ``pilotfish-cloud serve`` knows them, without the draft."""

    flags: tuple[str, ...]
    draft_model: bool  # whether it gets the reference draft, to draft with beside the target
    layers: int  # of the inflated target


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run. ``local`` is None against a verifier that runs already; ``sampling`` are fields of SamplingParams."""

    server: str
    local: LocalVerifier | None
    reference: str | None
    work_dir: str | None
    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]
    link: LinkOptions
    draft: DraftChoice
    prompts: tuple[str, ...]
    sampling: dict[str, Any]
    repeats: int
    warmup: int
    window: int
    model: str
    tokenizer: str | None
    timeout_s: float
    pin: bool
    json: str | None
    plot: str | None
    trace: str | None

    @property
    def verifier_trace(self) -> str | None:
        """Where a verifier started here writes its trace: run.cloud.jsonl beside run.jsonl."""
        if self.trace is None or self.local is None:
            return None
        path = Path(self.trace)
        return str(path.with_name(f"{path.stem}.cloud{path.suffix}").absolute())

    @property
    def device_drafts(self) -> bool:
        """Whether an arm may use the device's drafter."""
        return any(arm.device_drafts or arm is Arm.AUTO for arm in self.arms)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Read all options. Raises InvalidParameter and MissingExtra."""
    arms = arms_of(arguments.arms)
    cells = cells_of(arguments.rtt, arguments.concurrency)
    settings = Settings(
        server=arguments.server,
        local=_local(arguments, arms),
        reference=arguments.reference,
        work_dir=arguments.work_dir,
        arms=arms,
        cells=cells,
        link=LinkOptions.of(arguments),
        draft=_draft(arguments, arms),
        prompts=_prompts(arguments.prompts, arguments.prompt_file, max(cell.concurrency for cell in cells)),
        sampling=_sampling(arguments),
        repeats=integer("--repeats", arguments.repeats, 1, MAX_TIMES),
        warmup=integer("--warmup", arguments.warmup, 0, MAX_TIMES),
        window=integer("--window", arguments.window, 1, 1024),
        model=arguments.model,
        tokenizer=arguments.tokenizer,
        timeout_s=number("--timeout", arguments.timeout, 0.001, 1e6, "seconds"),
        pin=arguments.pin,
        json=arguments.json,
        plot=arguments.plot,
        trace=arguments.trace,
    )
    _check_links(settings)
    _check_files(settings)
    return settings


def _local(arguments: argparse.Namespace, arms: tuple[Arm, ...]) -> LocalVerifier | None:
    given = {
        "--dtype": arguments.dtype,
        "--verifier-flags": arguments.verifier_flags,
        "--reference": arguments.reference,
        "--work-dir": arguments.work_dir,
        "--target-layers": arguments.target_layers,
        "--no-cloud-draft-model": None if arguments.cloud_draft_model else "given",
    }
    if arguments.server != LOCAL:
        if any(address.websocket for address in parse_addresses(arguments.server)):
            raise InvalidParameter.of("--server", arguments.server, "grpc://host:port or grpcs://host:port")
        for name, value in given.items():
            if value is not None:
                raise InvalidParameter.of(name, value, "nothing: it is for --server local, this verifier runs already")
        return None
    if Arm.CO_LOCATED_MODEL in arms and not arguments.cloud_draft_model:
        raise InvalidParameter.of("--arms", str(Arm.CO_LOCATED_MODEL), "another arm, with --no-cloud-draft-model")
    dtype = "bfloat16" if arguments.dtype is None else arguments.dtype
    if dtype not in DTYPES:
        raise InvalidParameter.of("--dtype", dtype, " or ".join(DTYPES))
    try:
        more = shlex.split(arguments.verifier_flags or "")
    except ValueError as error:
        raise InvalidParameter.of("--verifier-flags", arguments.verifier_flags, f"flags ({error})") from None
    wanted = arguments.cloud_draft_model and any(arm in NEEDING_CLOUD_MODEL for arm in arms)
    layers = LAYERS if arguments.target_layers is None else integer("--target-layers", arguments.target_layers, 1, 200)
    return LocalVerifier(("--dtype", dtype, "--deterministic", *more), wanted, layers)


def _draft(arguments: argparse.Namespace, arms: tuple[Arm, ...]) -> DraftChoice:
    local = arguments.server == LOCAL
    given = arguments.draft
    choice = (
        DraftChoice.parse(given) if given is not None else DraftChoice(DraftKind.MODEL if local else DraftKind.NGRAM)
    )
    if choice.kind is DraftKind.MODEL and choice.folder is None and not local:
        raise InvalidParameter.of("--draft", given, "slow:MS,DIR where --server is not local")
    drafting = [arm for arm in arms if arm in DEVICE_ARMS]
    if choice.kind is DraftKind.NONE and drafting:
        raise InvalidParameter.of("--draft", given, f"something to draft with, for {', '.join(drafting)}")
    return choice


def _prompts(count: str | None, file: str | None, streams: int) -> tuple[str, ...]:
    """As many as asked for; each stream needs one of its own."""
    known = prompts.PROMPTS if file is None else prompts.from_file(file)
    default = min(max(DEFAULT_PROMPTS, streams), len(known)) if file is None else len(known)
    number_of = default if count is None else integer("--prompts", count, 1, len(known))
    if streams > number_of:
        raise InvalidParameter.of("--concurrency", streams, f"at most the number of prompts, {number_of}")
    return tuple(known[:number_of])


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    sampling = {
        "max_tokens": integer("--max-tokens", arguments.max_tokens, 1, 2**31 - 1),
        "temperature": number("--temperature", arguments.temperature, 0, 100),
        "seed": integer("--seed", arguments.seed, 0, 2**64 - 1),
        "ignore_eos": True,  # answers of equal length: what is compared is the speed, not who ends first
    }
    SamplingParams.from_mapping(sampling)
    return sampling


def _check_links(settings: Settings) -> None:
    """Raises InvalidParameter for a link that would have to look into TLS, MissingExtra without the emulator."""
    through = [cell.rtt_ms for cell in settings.cells if not settings.link.direct(cell.rtt_ms)]
    if not through:
        return
    if settings.local is None and any(address.secure for address in parse_addresses(settings.server)):
        raise InvalidParameter.of(
            "--rtt",
            f"{max(through):g}",
            f"only 0, and no link options, for {settings.server}: TLS would refuse the link's own host name",
        )
    smallest = min(through)
    if settings.link.jitter_ms > smallest and settings.link.spreads_evenly:
        raise InvalidParameter.of(
            "--jitter",
            f"{settings.link.jitter_ms:g}",
            f"at most the smallest --rtt, {smallest:g} (or another --distribution than uniform)",
        )
    if importlib.util.find_spec("pilotfish_sim") is None:
        raise MissingExtra.of("pilotfish_sim", "sim", "a link with a round trip")


def _check_files(settings: Settings) -> None:
    if settings.json not in (None, STDOUT):
        check_replaceable("--json", str(settings.json))
    if settings.trace is not None:
        check_replaceable("--trace", settings.trace)
    if settings.plot is not None:
        if Path(settings.plot).suffix.lower() != ".png":
            raise InvalidParameter.of("--plot", settings.plot, "a file whose name ends with .png")
        check_replaceable("--plot", settings.plot)
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtra.of("matplotlib", "bench", "--plot")
