"""A short measurement where no run has told yet: some patches through the model, as a worker of this machine does."""

from __future__ import annotations

import time

from pipeline.config import RunConfig
from pipeline.costs import work as table
from pipeline.costs.forecast import Setting
from pipeline.costs.speeds import Measured, add_run

_PATCHES = 4


def probe_model(config: RunConfig, setting: Setting) -> float:
    """Measure the model and keep it among the speeds of this machine; returns megapixels a second of one worker.

    Raises:
        ModelError: the model cannot be loaded here.
    """
    from pipeline.models.engines import segmenter_for_worker
    from pipeline.models.prepare import random_patch

    compute = config.compute
    opened = time.perf_counter()
    segmenter = segmenter_for_worker(config.model, compute.engine, "auto", compute.precision)
    opened = time.perf_counter() - opened
    patch = random_patch(segmenter.card)
    # the first one also makes room
    segmenter.logits(patch)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(_PATCHES):
        segmenter.logits(patch)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    megapixels = _PATCHES * segmenter.card.patch.size**2 / 1e6
    unit = table.BlockWork(0.0, megapixels).model_s
    found = {
        table.MODEL: Measured(min(cpu, wall) / unit, wall / unit),
        table.OPEN: Measured(opened / table.open_s(), opened / table.open_s()),
    }
    add_run({setting.names(name)[0]: one for name, one in found.items()})
    return megapixels / wall
