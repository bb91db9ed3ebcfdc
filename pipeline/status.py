"""How a run stands, from its folder alone: nothing is computed, asked or changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import run_holder
from pipeline.errors import ConfigError
from pipeline.plan import PLAN_FILE, Plan, product_digest, read_plan
from pipeline.request import REQUEST_FILE
from pipeline.steps import LEDGER_FILE, finished_blocks, published_record

_SHOWN = 20


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        product: its folder.
        state: running · current (the product is whole and of this plan) · failed (blocks are set aside) ·
            interrupted (blocks are to come) · unpublished (all blocks are done) · planning (there is no plan yet).
        published: whether there is a product, of this plan or an earlier one.
        complete: whether that product holds every block; None without one.
        planned: blocks with loss.
        done: blocks with a checkpoint of this plan, code and model.
        failed: reason by block.
        excluded: scenes that were found unreadable, with the reason.
        holder: pid, host and since of the process that runs, or of one that died; empty where the last one ended.
        next: the command that goes on, or empty.
    """

    product: str
    state: str
    published: bool
    complete: bool | None
    planned: int
    done: int
    failed: dict[str, str]
    excluded: dict[str, str]
    holder: dict[str, Any]
    next: str


def work_of(out: Path) -> Path:
    """The folder of state of an output folder, or the named one itself; raises ConfigError where it is no run's."""
    for work in (out.with_name(out.name + ".work"), out):
        if (work / REQUEST_FILE).is_file() or (work / PLAN_FILE).is_file():
            return work
    raise ConfigError(f"{out}: no run was begun here; name the output.dir of one, or use `clearcause run CONFIG`")


def read_status(out: Path) -> Status:
    """Read how the run of an output folder stands.

    Raises:
        ConfigError: nothing was run there, or by a version of this program that left other files.
    """
    work = work_of(out)
    product = work.with_name(work.name.removesuffix(".work"))
    running, holder = run_holder(work)
    plan = _plan(work)
    done = finished_blocks(work, plan) if plan else set()
    ledger = _json(work / LEDGER_FILE)
    failed = {b["block"]: b["reason"] for b in ledger.get("blocks", ()) if b["status"] == "failed"}
    planned = [p.block.id for p in plan.blocks] if plan else []
    failed = {block: failed[block] for block in planned if block in failed and block not in done}
    record = _published(work, product)
    current = bool(record and plan and record.get("complete") and record.get("digest") == product_digest(plan))
    state = "running" if running else "current" if current else _state(plan, len(done), failed)
    return Status(
        product=str(product),
        state=state,
        published=bool(record),
        complete=bool(record.get("complete")) if record else None,
        planned=len(planned),
        done=len(done),
        failed=failed,
        excluded=dict(ledger.get("excluded", {})),
        holder=holder,
        next="" if state in ("running", "current") else f"clearcause retry {product}",
    )


def _published(work: Path, product: Path) -> dict[str, Any]:
    """The record of the product that is published, empty where there is none."""
    store = str(_json(work / REQUEST_FILE).get("config", {}).get("output", {}).get("store", ""))
    return published_record(product, store) or {}


def _state(plan: Plan | None, done: int, failed: dict[str, str]) -> str:
    if plan is None:
        return "planning"
    if done == len(plan.blocks):
        return "unpublished"
    return "failed" if done + len(failed) == len(plan.blocks) else "interrupted"


def _plan(work: Path) -> Plan | None:
    if not (work / PLAN_FILE).is_file():
        return None
    try:
        return read_plan(work)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{work / PLAN_FILE}: is of another version of Clearcause; `clearcause run CONFIG` plans anew"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def render_status(status: Status) -> str:
    """A status in a few lines of plain words."""
    words = {
        "running": "running", "current": "done, the product is current", "failed": "ended, some blocks failed",
        "interrupted": "interrupted, blocks are to come", "unpublished": "all blocks done, not published",
        "planning": "not planned yet",
    }  # fmt: skip
    told = f"{status.product}: {words[status.state]}"
    by = ", ".join(f"{key} {value}" for key, value in status.holder.items())
    if by:
        told += f" ({by})" if status.state == "running" else f" (its process died: {by})"
    lines = [told, f"blocks: {status.planned} planned, {status.done} done, {len(status.failed)} failed"]
    if status.state != "current" and status.published:
        kind = "complete" if status.complete else "incomplete"
        lines.append(f"the product there is of an earlier state, {kind}, and stays until the next one is whole")
    shown = list(status.failed.items())[:_SHOWN]
    lines += [f"failed {block}: {reason}" for block, reason in shown]
    if len(status.failed) > len(shown):
        lines.append(f"... and {len(status.failed) - len(shown)} more; --json names all")
    lines += [f"unreadable {scene}: {reason}" for scene, reason in list(status.excluded.items())[:_SHOWN]]
    if status.next:
        lines.append(f"go on with: {status.next}")
    return "\n".join(lines)
