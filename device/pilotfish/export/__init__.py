"""Turning a Hugging Face checkpoint into a draft model for the device. Needs the extra ``export``."""

from __future__ import annotations

from pilotfish.export.exporter import QUANTS, ExportReport, export_model

__all__ = ["QUANTS", "ExportReport", "export_model"]
