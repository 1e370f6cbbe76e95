"""``pilotfish export``: arguments and output. The work is in ``exporter``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pilotfish.export.exporter import ExportReport, export_model
from pilotfish.export.progress import ProgressBar
from pilotfish.export.targets import QUANTS, TARGETS
from pilotfish.output import show
from pilotfish_core.errors import InvalidParameter

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_export_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add ``export`` to a command's subparsers; its ``run`` default is ``run_export``."""
    parser = subparsers.add_parser(
        "export",
        help="turn a Hugging Face checkpoint into a draft model for this device",
        description="Export a Llama, Mistral, Qwen2 or Qwen3 checkpoint and measure the result against it.",
        epilog="onnx: desktop, server, Android; onnx-web: browsers (fp32, fp16, int8); coreml: iOS 18, macOS 15 (fp16, "
        "int8, int4). What runs on this machine, and why not: pilotfish runtimes.",
    )
    parser.add_argument("model", metavar="DIR", help="model folder or Hugging Face id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--to", choices=TARGETS, default="onnx", help="runtime (default: onnx)")
    parser.add_argument("--quant", choices=QUANTS, default="int8", help="weights (default: int8)")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="context length (default: the model's)")
    parser.add_argument("--text-file", metavar="FILE", help="UTF-8 text to measure on")
    parser.add_argument(
        "--calibration-file", metavar="FILE", help="UTF-8 text like what the model will write, to round int4 with"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run_export)
    return parser


def run_export(arguments: argparse.Namespace) -> int:
    """Export, print the report (progress: stderr), return the exit status. Raises PilotfishError."""
    bar = ProgressBar()
    try:
        report = _export(arguments, bar)
    finally:
        bar.clear()
    show((json.dumps(report.to_dict(), indent=2) if arguments.json else report.table()) + "\n")
    return 0


def _export(arguments: argparse.Namespace, bar: ProgressBar) -> ExportReport:
    return export_model(
        arguments.model,
        arguments.out,
        to=arguments.to,
        quant=arguments.quant,
        text=_text(arguments.text_file),
        calibration=_text(arguments.calibration_file),
        context_length=arguments.max_model_len,
        overwrite=arguments.overwrite,
        progress=bar,
    )


def _text(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"cannot read the text file {file}: {error}") from None
