"""Numbers as the report writes them."""

from __future__ import annotations

import math

NOTHING = "\u2013"  # en dash


def number(value: float | None, decimals: int = 1) -> str:
    """Return a number with narrow spaces between thousands, a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{decimals}f}".replace(",", "\u202f")


def percent(value: float | None, decimals: int = 1) -> str:
    """Return a share 0..1 in percent; what is not all never reads 100 %, what is not nothing never 0 %."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{100 * value:.{decimals}f}"
    step = 10.0**-decimals
    if float(text) >= 100 and value < 1:
        return f">\u202f{100 - step:.{decimals}f}\u202f%"
    if float(text) == 0 and value > 0:
        return f"<\u202f{step:.{decimals}f}\u202f%"
    return f"{text}\u202f%"
