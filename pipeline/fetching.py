"""The fetch stage: every file that a plan names comes to this machine, or its scene leaves the plan with the reason."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline import late, survey
from pipeline import plan as planning
from pipeline.catalog.check import REMOTE
from pipeline.catalog.scene import QA_PIXEL, Scene
from pipeline.errors import OutputError, SceneError
from pipeline.fetch_log import FetchLog, Need, Needs, users_of
from pipeline.gdal import small_cache
from pipeline.pictures import BEFORE_ONLY, picture_bands
from pipeline.plan import Plan
from pipeline.plan_scenes import without_scenes
from pipeline.request import Request

if TYPE_CHECKING:
    from pipeline.catalog.fetch import Fetcher
    from pipeline.reach import RunReads

_FETCHES = 8
"""Files fetched at once; how many connections one host gets is the fetcher's policy."""


@small_cache
def fetch_scenes(request: Request, plan: Plan) -> Plan:
    """Bring every file the plan names to this machine; scenes that cannot be had leave the plan with their reason.

    Raises:
        OutputError: too little free space.
    """
    from pipeline.catalog.fetch import Fetcher
    from pipeline.catalog.signing import signer

    _check_space(request, plan)
    imagery = request.config.imagery
    fetcher = Fetcher(imagery.cache, imagery.allow_hosts, signer(imagery.source), imagery.requester_pays)
    stage = _Stage(request, fetcher, plan)
    fetched = _fetch_bands(stage, _look_at_late(stage, _choose(stage, plan)))
    # a scene that could not be had gives its place to the next best candidate
    while fetched.undecided:
        fetched = _fetch_bands(stage, _choose(stage, fetched))
    return fetched


class _Stage:
    """What is the same for the whole stage: the request, the fetcher, what is read, and the log of what came."""

    def __init__(self, request: Request, fetcher: Fetcher, plan: Plan) -> None:
        self.request, self.fetcher = request, fetcher
        self.imagery, self.work = request.config.imagery, request.work
        scenes = (*plan.scenes.values(), *plan.spare.values(), *plan.before_scenes.values())
        self.remote = any(a.href.lower().startswith(REMOTE) for scene in scenes for a in scene.assets.values())
        self.log = FetchLog(self.work, plan.inputs, self.imagery.read)
        self._reads: RunReads | None = None

    def reads(self, plan: Plan) -> RunReads:
        """What the run reads; only where windows are brought, as it takes laying every patch."""
        from pipeline.reach import RunReads

        if self._reads is None:
            self._reads = RunReads(self.work, plan)
        return self._reads

    def needs(self, plan: Plan) -> Needs:
        """What each remote file of a plan is needed for."""
        if self.imagery.read == "window" and self.remote:
            return self.reads(plan).needs(plan)
        return users_of(plan)

    def bring(self, plan: Plan, scene: Scene, band: str, needs: Need) -> None:
        """Bring one band of a scene for those who need it; raises SceneError."""
        from pipeline.reach import reach_of

        windows = self.imagery.read == "window"
        brought = self.fetcher.band(scene, band, reach_of(scene, band, plan, needs) if windows else None)
        if brought is not None:
            self.log.add(scene.id, band, brought, needs)


def _choose(stage: _Stage, plan: Plan) -> Plan:
    """Choose the scenes that the plan leaves open by their clouds over the loss: QA_PIXEL comes before any band."""
    from pipeline.catalog import cache as store
    from pipeline.catalog.fetch import localised

    if not plan.undecided:
        return plan
    needs = stage.needs(plan)
    look = stage.reads(plan).look if stage.imagery.read == "window" and stage.remote else []

    def bring(scene: Scene, band: str) -> Scene:
        # what the blocks will read comes along, so that a scene that is chosen needs no second request
        stage.bring(plan, scene, band, needs.get(scene.id, Need()).with_choice(look))
        return localised(scene, stage.imagery.cache)

    store.hold([s.assets[QA_PIXEL].href for s in plan.scenes.values() if QA_PIXEL in s.assets], stage.imagery.cache)
    decided = survey.decide(plan, stage.work, stage.imagery, bring, late.settled_blocks(stage.work, plan))
    decided.save(stage.work)
    stage.log.save()
    return decided


def _look_at_late(stage: _Stage, plan: Plan) -> Plan:
    """Keep those scenes of a late pass that show most of the events that await an image: QA_PIXEL comes first."""
    from pipeline.catalog import cache as store
    from pipeline.catalog.fetch import localised

    windows = late.unseen_windows(stage.work, plan)
    if not windows:
        return plan
    needs = stage.needs(plan)
    store.hold([plan.scenes[s].assets[QA_PIXEL].href for s in windows if QA_PIXEL in plan.scenes[s].assets],
               stage.imagery.cache)  # fmt: skip

    def look(key: str) -> int | str:
        places = [part.place for part in windows[key]]

        def bring(scene: Scene, band: str) -> Scene:
            stage.bring(plan, scene, band, needs.get(key, Need()).with_choice(places))
            return localised(scene, stage.imagery.cache)

        try:
            return late.clear_pixels(plan.scenes[key], windows[key], plan, stage.work, bring)
        except SceneError as error:
            return error.reason

    with ThreadPoolExecutor(_FETCHES) as pool:
        told = dict(zip(windows, pool.map(look, windows), strict=True))
    stage.log.save()
    lost = {key: reason for key, reason in told.items() if isinstance(reason, str)}
    clear = {key: count for key, count in told.items() if isinstance(count, int)}
    refused, spared = late.choose_late(plan, clear, stage.imagery.max_scenes)
    refused += [planning.refuse(plan.scenes[key], reason) for key, reason in lost.items()]
    if not refused:
        return plan
    thinner = without_scenes(plan, refused, late.settled_blocks(stage.work, plan))
    thinner = late.forgotten(thinner, [*spared, *late.worth_retrying(plan.scenes[key] for key in lost)])
    thinner.save(stage.work)
    return thinner


def _fetch_bands(stage: _Stage, plan: Plan) -> Plan:
    from pipeline.catalog import cache as store

    scenes = {**plan.before_scenes, **plan.scenes}
    # nobody may evict what this run needs before the run is over
    store.hold([asset.href for scene in scenes.values() for asset in scene.assets.values()], stage.imagery.cache)
    reasons = _bring_all(stage, plan, scenes)
    store.evict(stage.imagery.cache, int(stage.imagery.cache_gb * 1e9))
    stage.log.save()
    refused = [
        planning.refuse(scenes[key], reason if key in plan.scenes else f"{BEFORE_ONLY}: {reason}")
        for key, reason in reasons.items()
    ]
    if not refused:
        return plan
    thinner = without_scenes(plan, refused, late.settled_blocks(stage.work, plan))
    thinner = late.forgotten(thinner, late.worth_retrying(scenes[key] for key in reasons))
    thinner.save(stage.work)
    return thinner


def _bring_all(stage: _Stage, plan: Plan, scenes: dict[str, Scene]) -> dict[str, str]:
    """Bring every band that is wanted of these scenes: id of a scene that cannot serve to the reason."""
    from pipeline.catalog.check import check_scene
    from pipeline.catalog.fetch import localised

    wanted = {key: plan.bands if key in plan.scenes else picture_bands(plan.bands) for key in scenes}
    needs, faults = stage.needs(plan), dict[str, str]()

    def bring(job: tuple[str, str]) -> None:
        key, band = job
        if key not in faults:
            try:
                stage.bring(plan, scenes[key], band, needs.get(key, Need()))
            except SceneError as error:
                faults.setdefault(key, error.reason)

    def check(key: str) -> str | None:
        return faults.get(key) or check_scene(localised(scenes[key], stage.imagery.cache), wanted[key])

    with ThreadPoolExecutor(_FETCHES) as pool:
        list(pool.map(bring, [(key, band) for key in scenes for band in (QA_PIXEL, *wanted[key])]))
        reasons = dict(zip(scenes, pool.map(check, scenes), strict=True))
    return {key: reason for key, reason in reasons.items() if reason}


def _check_space(request: Request, plan: Plan) -> None:
    pixels = sum(b.block.height * b.block.width for b in plan.blocks)
    need = 20_000_000 + pixels // 2 + plan.event_count * 4_000
    free = shutil.disk_usage(request.work).free
    if free < need:
        raise OutputError(f"output.dir {request.work}: {free >> 20} MB free, about {need >> 20} MB needed")
