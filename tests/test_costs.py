"""The forecast: laws of the arithmetic, the file of speeds, and what a run says about itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_samples import Program, World, run, write_config

from pipeline.blocks import BlockRecord
from pipeline.costs import speeds as module
from pipeline.costs import work as table
from pipeline.costs.clock import Clock, Spent
from pipeline.costs.forecast import Forecast, Setting, forecast, lessons
from pipeline.costs.speeds import Measured, RunSpeeds, Speeds, add_run, read_speeds, speeds_file
from pipeline.costs.work import BlockWork, Work, makespan, work_of
from pipeline.plan import read_plan

SECOND = "2026-01-02T03:04:05+00:00"
amounts = st.floats(0, 500)
a_block = st.builds(BlockWork, scene_mpx=amounts, model_mpx=amounts)
factors = st.floats(0.05, 20)
a_setting = st.builds(Setting, st.sampled_from(["local", "threads", "slurm"]), st.integers(1, 40), st.just("m"))


@st.composite
def works(draw: st.DrawFn) -> Work:
    blocks = draw(st.lists(a_block, max_size=12))
    return Work(
        {f"b{k}": block for k, block in enumerate(blocks)}, draw(st.integers(0, 500)), draw(st.integers(0, 10**10)),
        draw(st.integers(0, 10**6)), draw(st.integers(0, 500)), draw(amounts), draw(amounts), draw(amounts),
        len(blocks) + draw(st.integers(0, 5)),
    )  # fmt: skip


@st.composite
def known(draw: st.DrawFn, setting: Setting) -> Speeds:
    """Speeds of up to three runs that measured some stages."""
    names = [setting.names(stage)[0] for stage in STAGES]
    some = st.dictionaries(st.sampled_from(names), st.builds(Measured, cpu=factors, wall=factors))
    return Speeds(tuple(RunSpeeds(SECOND, "code", stages) for stages in draw(st.lists(some, max_size=3))))


STAGES = (
    table.START, table.POOL, table.LOOK, table.OPEN, table.READ, table.MODEL, table.MERGE, table.PUBLISH, table.NETWORK,
    table.BYTES, table.MEMORY, table.DISK,
)  # fmt: skip


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(module.STATE_VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state"


def sizes(found: Forecast) -> list[float]:
    return [found.seconds, found.low, found.high, found.fetch_bytes, found.disk_bytes, found.worker_mb]


# ---------------------------------------------------------------------------------------------- the arithmetic


@given(st.data(), works(), a_setting, a_block)
def test_one_more_block_is_never_cheaper(data: st.DataObject, work: Work, setting: Setting, block: BlockWork) -> None:
    speeds, place = data.draw(known(setting)), data.draw(st.integers(0, len(work.blocks)))
    listed = [*work.blocks.items()]
    more = dataclasses.replace(
        work, blocks=dict([*listed[:place], ("new", block), *listed[place:]]), planned=work.planned + 1
    )
    before, after = forecast(work, setting, speeds), forecast(more, setting, speeds)
    assert all(one <= other + 1e-6 for one, other in zip(sizes(before), sizes(after), strict=True))
    # a worker that is busy anyway may take it in, but the first block of all costs workers
    assert after.stages["blocks"] >= before.stages["blocks"]


@given(st.data(), works(), a_setting, st.sampled_from([f.name for f in dataclasses.fields(Work) if f.name != "blocks"]))
def test_more_of_anything_is_never_cheaper(data: st.DataObject, work: Work, setting: Setting, name: str) -> None:
    speeds, more = data.draw(known(setting)), data.draw(st.integers(1, 1000))
    larger = dataclasses.replace(work, **{name: getattr(work, name) + more})
    pairs = zip(sizes(forecast(work, setting, speeds)), sizes(forecast(larger, setting, speeds)), strict=True)
    assert all(one <= other for one, other in pairs)


@given(st.data(), works(), a_setting)
def test_the_likely_lies_within_the_range(data: st.DataObject, work: Work, setting: Setting) -> None:
    found = forecast(work, setting, data.draw(known(setting)))
    assert 0 < found.low <= found.seconds <= found.high
    assert found.seconds == pytest.approx(sum(found.stages.values()))


@given(st.lists(amounts, min_size=1, max_size=40), st.integers(1, 50))
def test_blocks_take_their_share_and_at_most_one_block_more(seconds: list[float], workers: int) -> None:
    took, share = makespan(seconds, workers), sum(seconds) / workers
    assert max(share, *seconds) - 1e-6 <= took <= share + max(seconds) + 1e-6
    assert makespan(seconds, workers + 1) <= took + 1e-6


@given(a_block, st.integers(1, 30))
def test_twice_the_blocks_take_twice_the_time_of_one_worker(block: BlockWork, count: int) -> None:
    setting, empty = Setting("local", 1, "m"), Work({}, 0, 0, 0, 0, 0, 0, 0, 0)

    def of(n: int) -> float:
        work = dataclasses.replace(empty, blocks={str(k): block for k in range(n)})
        return forecast(work, setting, Speeds()).stages["blocks"]

    assert of(2 * count) == pytest.approx(2 * of(count))
    assert of(count) == pytest.approx(count * (block.read_s + block.model_s))


# ---------------------------------------------------------------------------------------------- what runs teach

HALF = 0.5
SETTING = Setting("local", 2, "m", "plain")
WORK = Work({f"b{k}": BlockWork(4.0, 2.0) for k in range(6)}, 40, 0, 900, 24, 4.0, 0.2, 300.0, 6)


def played(work: Work, pace: float, slowed: float = 1.0) -> tuple[Clock, list[BlockRecord]]:
    """A run that takes `pace` seconds of cores for one of the table, and `slowed` times as long by the clock."""
    cpu = {
        "fetch_scenes": work.look_s, "merge_blocks": work.merge_s, "publish_product": work.publish_s
    }  # fmt: skip
    stages = {name: Spent(unit * pace * slowed, unit * pace) for name, unit in cpu.items()}
    records, opened, each = [], table.open_s() * pace, [b.read_s + b.model_s for b in work.blocks.values()]
    for k, (name, block) in enumerate(work.blocks.items()):
        own = opened if k < 2 else 0.0
        seconds = own + pace * (block.read_s + block.model_s)
        records.append(
            BlockRecord(
                name,
                "done",
                seconds=seconds * slowed,
                forward_seconds=block.model_s * pace * slowed,
                open_seconds=own * slowed,
                cpu_seconds=seconds,
                open_cpu_seconds=own,
                forward_cpu_seconds=block.model_s * pace,
                peak_rss_mb=round(work.worker_mb * pace),
            )
        )
    whole = table.pool_s("local") * pace + (opened + makespan(each, 2) * pace) * slowed
    stages["predict_blocks"] = Spent(whole)
    clock = Clock(stages=stages)
    clock.started -= sum(spent.wall for spent in stages.values()) + table.start_s("plain") * pace
    return clock, records


def taught(*runs: tuple[float, float]) -> Speeds:
    found = [lessons(WORK, SETTING, *played(WORK, *one)) for one in runs]
    return Speeds(tuple(RunSpeeds(SECOND, "code", stages) for stages in found))


@pytest.mark.parametrize("pace", [0.25, 1.0, 7.0])
def test_a_run_like_the_one_before_is_predicted_as_it_was(pace: float) -> None:
    clock, _ = played(WORK, pace)
    found = forecast(WORK, SETTING, taught((pace, 1.0)))
    assert found.seconds == pytest.approx(clock.total(), rel=0.01)
    assert set(found.guessed) == {table.DISK}, "only the run knows what it left on disk"


def test_a_run_of_another_size_is_predicted_from_it() -> None:
    larger = dataclasses.replace(
        WORK, blocks={f"b{k}": BlockWork(9.0, 7.0) for k in range(31)}, events=20_000, grid_mpx=90.0, looks=900
    )
    clock, _ = played(larger, 1.7)
    assert forecast(larger, SETTING, taught((1.7, 1.0))).seconds == pytest.approx(clock.total(), rel=0.01)


def test_a_run_on_a_busy_machine_widens_the_range_and_does_not_move_the_forecast() -> None:
    quiet, both = forecast(WORK, SETTING, taught((1.0, 1.0))), forecast(WORK, SETTING, taught((1.0, 1.0), (1.0, 6.0)))
    assert both.seconds == pytest.approx(quiet.seconds, rel=0.01)
    assert both.high > 3 * quiet.high
    assert both.low == pytest.approx(quiet.low, rel=0.01)


def test_one_strange_run_among_several_does_not_count() -> None:
    usual = [(1.0, 1.0)] * 4
    assert forecast(WORK, SETTING, taught(*usual, (30.0, 1.0))).seconds == pytest.approx(
        forecast(WORK, SETTING, taught(*usual)).seconds, rel=0.01
    )


def test_blocks_that_were_tried_again_or_were_there_teach_nothing() -> None:
    clock, records = played(WORK, 1.0)
    again = [dataclasses.replace(r, attempts=2) for r in records[:3]]
    there = [dataclasses.replace(r, status="existing") for r in records[3:]]
    names = {name.partition(":")[0] for name in lessons(WORK, SETTING, clock, [*again, *there])}
    assert names == {table.START, table.LOOK, table.MERGE, table.PUBLISH}


def test_runs_of_this_code_come_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "code_digest", lambda: "new")
    old = [RunSpeeds(SECOND, "old", {"merge": Measured(9.0, 9.0)})] * 5
    assert Speeds(tuple(old)).factor("merge").likely == 9.0
    assert Speeds((*old, RunSpeeds(SECOND, "new", {"merge": Measured(2.0, 2.0)}))).factor("merge").likely == 2.0


# ---------------------------------------------------------------------------------------------- the file


def test_speeds_are_kept_and_read() -> None:
    assert read_speeds().runs == ()
    assert add_run({"merge": Measured(2.0, 3.0), "bad": Measured(0.0, 1.0), "worse": Measured(float("nan"), 1.0)})
    (one,) = read_speeds().runs
    assert one.stages == {"merge": Measured(2.0, 3.0)}
    assert read_speeds().newest == one.measured
    for _ in range(module._KEPT + 5):
        add_run({"look": Measured(1.0, 1.0)})
    assert len(read_speeds().runs) == module._KEPT


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_broken_file_is_told_in_a_line_and_written_anew(data: st.DataObject) -> None:
    speeds_file().unlink(missing_ok=True)
    add_run({"merge": Measured(2.0, 3.0)})
    sound = speeds_file().read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "cut", "tree"]))
    if kind == "bytes":
        ruined = data.draw(st.binary(max_size=300))
    elif kind == "cut":
        ruined = sound[: data.draw(st.integers(0, len(sound) - 3))]
    else:
        values = st.one_of(st.none(), st.integers(), st.text(max_size=9), st.floats(), st.lists(st.none(), max_size=2))
        tree = json.loads(sound)
        places = [(tree, "version"), (tree, "machine"), (tree, "runs"), (tree["runs"][0], "stages"),
                  (tree["runs"][0], "measured"), (tree["runs"][0]["stages"]["merge"], "cpu")]  # fmt: skip
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(values)
        ruined = json.dumps(tree).encode()
    speeds_file().write_bytes(ruined)
    found = read_speeds()
    whole = found.runs == () or all(m.cpu > 0 for r in found.runs for m in r.stages.values())
    assert whole
    assert "\n" not in found.fault
    assert found.fault or found.runs == () or kind == "tree"
    if found.fault:
        assert str(speeds_file()) in found.fault
        assert found.runs == ()
    forecast(WORK, SETTING, found)
    assert add_run({"merge": Measured(5.0, 5.0)})
    assert read_speeds().fault == ""


def test_the_file_of_another_machine_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    add_run({"merge": Measured(2.0, 3.0)})
    content = speeds_file().read_bytes()
    monkeypatch.setattr(module, "machine", lambda: "another one, 99 cores")
    assert read_speeds().runs == ()
    assert read_speeds().fault == ""
    speeds_file().write_bytes(content)
    assert "another machine" in read_speeds().fault


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(state: Path) -> None:
    state.write_text("a file where the folder would be")
    assert not add_run({"merge": Measured(2.0, 3.0)})
    assert "\n" not in read_speeds().fault


def test_processes_that_end_at_once_all_leave_what_they_measured(root: Path) -> None:
    code = (
        "from pipeline.costs.speeds import Measured, add_run\n"
        "import sys\n"
        "for k in range(5): assert add_run({f'{sys.argv[1]}-{k}': Measured(1.0, 1.0)})"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(k)], cwd=root, env=os.environ) for k in range(3)]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    names = {name for run in read_speeds().runs for name in run.stages}
    assert names == {f"{job}-{k}" for job in range(3) for k in range(5)}


# ---------------------------------------------------------------------------------------------- a real run


def test_a_run_says_what_was_expected_and_the_next_forecast_knows_it(
    world: World, tiny_model: Path, tmp_path: Path, cli: Program
) -> None:
    config = write_config(tmp_path, world, tiny_model)
    first = json.loads(cli("plan", config, "--json", "--no-prefect").out)
    assert first["measured_runs"] == 0
    assert first["speeds_measured"] is None
    assert first["seconds_low"] < first["seconds"] < first["seconds_high"]
    assert min(first["worker_mb"], first["disk_bytes"]) > 0
    assert first["fetch_bytes"] == 0
    assert "this is a guess" in cli("plan", config).out
    done = cli("run", config, "--no-prefect")
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("predicted ")]
    timings = json.loads((tmp_path / "product" / "run.json").read_text())["timings"]
    assert line == f"predicted {timings['expected']['seconds']:.0f} s, took {timings['seconds']:.0f} s" or (
        # a second may pass between the record and the line
        line.startswith(f"predicted {timings['expected']['seconds']:.0f} s, took ")
    )
    stages = {"plan_run", "fetch_scenes", "predict_blocks", "merge_blocks", "publish_product", "between"}
    assert set(timings["stages"]) == stages
    assert sum(timings["stages"].values()) == pytest.approx(timings["seconds"], rel=0.02, abs=0.2)
    after = json.loads(cli("plan", config, "--json", "--no-prefect", "-o", "output.uncertain_below=0.41").out)
    assert after["guessed"] == []
    assert after["measured_runs"] == 1
    assert after["speeds_measured"]
    assert "measured on this machine, last minutes ago" in cli("plan", config, "--no-prefect").out


def test_what_is_done_is_not_counted_again(world: World, tiny_model: Path, tmp_path: Path) -> None:
    from pipeline.config import load_config
    from pipeline.steps import finished_blocks

    config = write_config(tmp_path, world, tiny_model)
    parsed = load_config(config)
    run(config)
    plan = read_plan(parsed.work)
    done = finished_blocks(parsed.work, plan)
    assert done == {b.block.id for b in plan.blocks}
    assert work_of(plan, parsed, done).blocks == {}
    assert len(work_of(plan, parsed).blocks) == len(plan.blocks)
    assert work_of(plan, parsed).fetch_bytes == 0


def test_the_model_is_measured_on_request(world: World, tiny_model: Path, tmp_path: Path, cli: Program) -> None:
    config = write_config(tmp_path, world, tiny_model)
    told = json.loads(cli("plan", config, "--json", "--calibrate").out)
    assert not {table.MODEL, table.OPEN} & set(told["guessed"])
    assert table.READ in told["guessed"]
