"""The options of every command that talks to a verifier, and the client that they describe."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from pilotfish.output import note
from pilotfish.settings import settle
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm, Hint, Objective

if TYPE_CHECKING:
    from pilotfish.draft_download import DownloadProgress


def add_client_options(parser: Any, *, alone: bool = True) -> None:
    """``alone``: whether ``--cloud never`` is offered."""
    parser.add_argument(
        "--verifier",
        "--server",
        dest="server",
        metavar="ADDR[,ADDR...]",
        help="of verifiers, [grpc://|grpcs://|ws://|wss://]HOST[:PORT]; later ones take over (default: "
        "$PILOTFISH_VERIFIER)",
    )
    parser.add_argument(
        "--draft", help="exported folder, 'ngram', 'auto' (default) or 'none' (default: $PILOTFISH_DRAFT)"
    )
    parser.add_argument(
        "--draft-cache-bytes", type=int, metavar="N", help="that drafts fetched by 'auto' may take (default: 4 GiB)"
    )
    parser.add_argument("--tokenizer", help="folder or tokenizer.json (default: the draft's, else the verifier's)")
    parser.add_argument("--model", help="name of the served model (default: the only one)")
    parser.add_argument(
        "--window", type=int, help="at most so many draft tokens ahead of the last known commit (default: 16)"
    )
    parser.add_argument(
        "--config", metavar="F", help="settings in TOML (default: $PILOTFISH_DEVICE_CONFIG, pilotfish/config.toml)"
    )
    _add_policy(parser.add_argument_group("policy", "who drafts, and what the choice is to make the best of"), alone)
    _add_offline(parser.add_argument_group("offline", "while the verifier cannot be reached"), alone)
    _add_security(parser.add_argument_group("security"))


def _add_policy(group: Any, alone: bool) -> None:
    arms = [arm.value for arm in Arm if alone or arm is not Arm.DEVICE_ONLY]
    group.add_argument("--arm", choices=arms, help="who drafts (default: auto)")
    group.add_argument(
        "--objective",
        choices=[objective.value for objective in Objective],
        help="what auto makes the best of (default: latency)",
    )
    group.add_argument("--battery-low", action="store_true", help="hint: the device should not compute much")
    group.add_argument("--metered", action="store_true", help="hint: bytes cost money")
    group.add_argument("--prefer-fast", action="store_true", help="hint: speed above all, whatever the other hints say")
    if alone:
        group.add_argument(
            "--cloud",
            default="auto",
            choices=["auto", "never"],
            help="never: send nothing, the draft model writes alone",
        )
    group.add_argument("--verbose", action="store_true", help="tell the policy's choices and the numbers behind them")


def _add_offline(group: Any, alone: bool) -> None:
    group.add_argument(
        "--offline",
        choices=["wait", "draft"],
        help="draft: a draft model goes on alone, unverified, until the link is back (default: wait)",
    )
    if alone:
        group.add_argument(
            "--on-reconnect",
            choices=["verify", "keep"],
            help="of what it wrote: what differs is replaced (default: verify), or all of it stands as it is",
        )


def _add_security(group: Any) -> None:
    absent: Any = None  # as not given, so that the environment or the file may say
    group.add_argument(
        "--api-key", metavar="KEY", help="(default: $PILOTFISH_API_KEY, which other users of this machine cannot see)"
    )
    group.add_argument("--ca", metavar="F", help="authorities to trust instead of the usual ones, PEM (grpcs://)")
    group.add_argument("--cert", metavar="F", help="this device's certificate for mutual TLS, PEM")
    group.add_argument("--key", metavar="F", help="its private key, PEM")
    group.add_argument(
        "--pad", action="store_true", default=absent, help="pad frames to size classes, both ways: sizes leak text"
    )
    group.add_argument(
        "--insecure", action="store_true", default=absent, help="send the key unencrypted to other machines, too"
    )


def settled(arguments: argparse.Namespace) -> dict[str, Any]:
    """Complete the arguments from environment and file; what ``Client`` is to be made with, beside its ``server``.

    Raises InvalidParameter where no verifier is named.
    """
    settle(arguments)
    cloud = getattr(arguments, "cloud", "auto")
    if arguments.server is None and cloud != "never" and arguments.arm != Arm.DEVICE_ONLY:
        alone = " (or --cloud never, to write without one)" if hasattr(arguments, "cloud") else ""
        raise InvalidParameter(f"give the verifier's address: --verifier ADDR, or PILOTFISH_VERIFIER{alone}")
    if arguments.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("pilotfish.policy").setLevel(logging.INFO)
    return {
        "draft": arguments.draft,
        "arm": arguments.arm,
        "objective": arguments.objective,
        "hint": Hint(arguments.battery_low, arguments.metered, arguments.prefer_fast),
        "cloud": cloud,
        "offline": arguments.offline,
        "on_reconnect": getattr(arguments, "on_reconnect", "verify"),
        "tokenizer": arguments.tokenizer,
        "model": arguments.model,
        "window": arguments.window,
        "api_key": arguments.api_key,
        "ca": arguments.ca,
        "cert": arguments.cert,
        "key": arguments.key,
        "insecure": arguments.insecure,
        "pad": arguments.pad,
        "draft_cache_bytes": arguments.draft_cache_bytes,
        "on_download": _Download(),
    }


class _Download:
    """Tells on standard error how the fetching of a draft model goes, in steps that do not fill a log."""

    def __init__(self) -> None:
        self._told = -1

    def __call__(self, progress: DownloadProgress) -> None:
        tenths = 10 * progress.received // max(progress.size, 1)
        if tenths > self._told:
            self._told = tenths
            note(f"pilotfish: draft model {progress.name}: {10 * tenths}% of {progress.size / 1e6:.1f} MB")
