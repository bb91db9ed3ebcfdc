"""Which scenes a plan reads, changed later: some taken out as they cannot be had, others chosen by their clouds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from pipeline.candidates import scene_warnings, wrs_place
from pipeline.catalog.scene import Refusal
from pipeline.plan import Plan, PlannedBlock, assign_scenes


def without_scenes(plan: Plan, refused: Sequence[Refusal], settled: Collection[str] = ()) -> Plan:
    """The plan less some scenes, which move to the refused ones.

    Blocks named in `settled` keep theirs, and what such a block uses stays: their answers have been published. Blocks
    of a late pass that are left without a scene of their own go.
    """
    gone = {refusal.scene_id for refusal in refused}
    thinner = (
        b
        if b.block.id in settled
        else replace(b, scenes={year: tuple(s for s in ids if s not in gone) for year, ids in b.scenes.items()})
        for b in plan.blocks
    )
    blocks = tuple(_with_purpose(thinner))
    in_use = {s for b in blocks if b.block.id in settled for ids in b.scenes.values() for s in ids}
    refused = [refusal for refusal in refused if refusal.scene_id not in in_use]
    gone -= in_use
    kept, early, spare = (
        {key: scene for key, scene in group.items() if key not in gone}
        for group in (plan.scenes, plan.before_scenes, plan.spare)
    )
    lost = {(year, wrs_place(plan.scenes[s])) for year, ids in plan.chosen.items() for s in ids if s in gone}
    return replace(
        plan,
        scenes=kept,
        refused=tuple(sorted([*plan.refused, *refused], key=_refusal_id)),
        blocks=blocks,
        before=_less(plan.before, gone),
        before_scenes=early,
        candidates=_less(plan.candidates, gone),
        chosen=_less(plan.chosen, gone),
        spare=spare,
        undecided=tuple(sorted({*plan.undecided, *lost})),
    )


def _less(groups: dict[int, tuple[str, ...]], gone: Collection[str]) -> dict[int, tuple[str, ...]]:
    return {year: tuple(s for s in ids if s not in gone) for year, ids in groups.items()}


def with_chosen(
    plan: Plan,
    chosen: dict[int, tuple[str, ...]],
    refused: Sequence[Refusal],
    warnings: Sequence[str] = (),
    settled: Collection[str] = (),
) -> Plan:
    """The decided plan: blocks read the `chosen` ones of its candidates, by loss year; the others become spare.

    `refused` gives the reasons of those that no year takes; scenes that pictures are made of keep that role. `warnings`
    are about the choice. Blocks of late passes, and those named in `settled`, keep their scenes.
    """
    known = {**plan.spare, **plan.scenes}
    groups = {year: [known[key] for key in ids] for year, ids in chosen.items()}
    blocks = tuple(
        b
        if b.late or b.block.id in settled
        else replace(b, scenes=assign_scenes(b.block, b.scenes, groups, plan.grid, plan.layout))
        for b in plan.blocks
    )
    used = {key for part in (chosen, *(b.scenes for b in blocks)) for ids in part.values() for key in ids}
    looked_at = {key for ids in plan.candidates.values() for key in ids}
    told = {r.scene_id: r for r in (*plan.refused, *(r for r in refused if r.scene_id not in plan.before_scenes))}
    return replace(
        plan,
        scenes={key: known[key] for key in sorted(used)},
        spare={key: known[key] for key in sorted(looked_at - used)},
        refused=tuple(r for key, r in sorted(told.items()) if key not in used),
        blocks=blocks,
        chosen=chosen,
        undecided=(),
        said=(*warnings, *scene_warnings(groups)),
    )


def _refusal_id(refusal: Refusal) -> str:
    return refusal.scene_id


def _with_purpose(blocks: Iterable[PlannedBlock]) -> list[PlannedBlock]:
    """Blocks of the first plan, and those of late passes that have a scene which the first plan's block has not."""
    kept: list[PlannedBlock] = []
    first: dict[tuple[int, int], dict[int, tuple[str, ...]]] = {}
    for planned in blocks:
        place = planned.block.row0, planned.block.col0
        own = first.setdefault(place, planned.scenes)
        if not planned.late or any(set(ids) - set(own.get(year, ())) for year, ids in planned.scenes.items()):
            kept.append(planned)
    return kept
