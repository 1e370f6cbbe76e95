"""Turning a Hugging Face checkpoint into a draft model for the device. Needs the extra ``export``."""

from __future__ import annotations

from pilotfish.export.exporter import ExportReport, export_model
from pilotfish.export.targets import QUANTS, TARGETS

__all__ = ["QUANTS", "TARGETS", "ExportReport", "export_model"]
