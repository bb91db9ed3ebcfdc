"""`report.html`: one page that opens without internet and loads nothing, every text escaped."""

from __future__ import annotations

from pipeline.product.report.page import render, write_report

__all__ = ["render", "write_report"]
