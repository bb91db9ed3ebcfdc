"""The program's commands for those who use a product: sample, assess, export, diff."""

from __future__ import annotations

import typer

app = typer.Typer()
