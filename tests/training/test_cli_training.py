"""The training commands from outside: an archive in ForestNet's format to a package, a judgement and a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from archive_samples import Event, write_forestnet
from run_samples import Program

from pipeline.training.environment import OPENMP

CLASSES = (
    ("Oil palm plantation", "Plantation"), ("Small-scale agriculture", "Smallholder agriculture"),
    ("Grassland shrubland", "Grassland shrubland"), ("Fish pond", "Other"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program sets before it imports torch, which this process has long done."""
    for key, value in OPENMP.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events = [
        Event(*CLASSES[k % 4], ("train", "train", "val", "test")[k // 4], -1.0 + 0.1 * k, 102.0 + 0.2 * k)
        for k in range(16)
    ]
    return write_forestnet(tmp_path_factory.mktemp("archive") / "forestnet", events)


def _config(folder: Path, archive: Path, **changes: Any) -> Path:
    tree = {
        "dataset": {"path": str(archive), "resolution": 30},
        "architecture": {
            "backbone": {"name": "tu-mobilenetv3_small_050"},
            "neck": {"name": "fpn", "settings": {"pyramid_channels": 32, "segmentation_channels": 32}},
        },
        "fusion": {"enabled": True, "auxiliary": ["altitude_mean"]},
        "training": {
            "steps": 2, "validations": 1, "crop": 64, "batch": 2, "accelerator": "cpu", "threads": 1, "average": 0.5,
        },
        "patch": {"size": 64, "stride": 48},
        "calibration": "temperature",
        "output": {"package": str(folder / "model"), "name": "small"},
        **changes,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_train_evaluate_show_and_compare(archive: Path, tmp_path: Path, cli: Program) -> None:
    trained = cli("train", _config(tmp_path, archive, fusion={"enabled": False}), "--json")
    assert trained.code == 0, trained.err
    told = json.loads(trained.out.splitlines()[-1])
    assert told["package"] == str(tmp_path / "model")
    assert any("leaks were not looked for" in line for line in told["warnings"])
    judged = cli("evaluate", tmp_path / "model", archive, "--resolution", 30, "--out", tmp_path / "judged")
    assert judged.code == 0, judged.err
    assert "4 of 4 events judged" in judged.out
    names = {path.name for path in (tmp_path / "judged").iterdir()}
    assert names == {"judgement.json", "confusion.png", "reliability.png", "risk-coverage.png"}
    shown = cli("models", "show", tmp_path / "model")
    assert shown.code == 0, shown.err
    for word in ("mobilenetv3", "fpn", "linear", "GFLOP"):
        assert word in shown.out
    assert json.loads(cli("models", "show", tmp_path / "model", "--json").out)["patch"]["resolution"] == 30
    compared = cli("evaluate", "--compare", tmp_path / "model", "--compare", tmp_path / "model" / "judgement.json")
    assert compared.code == 0, compared.err
    assert "small" in compared.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("evaluate", "MODEL", "ARCHIVE", "--split", "tset"), "--split 'tset': must be one of train, val, test, all"),
        (("evaluate", "ARCHIVE", "ARCHIVE"), "no model.json there"),
        (("evaluate",), "name a model package and a data set"),
        (("evaluate", "--compare", "ARCHIVE"), "judgement.json: cannot be read"),
        (("baseline", "ARCHIVE", "--features", "visibel"), "features 'visibel': known are"),
        (("baseline", "EMPTY"), "no train.csv"),
        (("train", "EMPTY"), "no such file"),
        (("download", "forestnest", "EMPTY"), "not a public archive known here"),
    ],
)
def test_bad_arguments_end_in_one_line_and_exit_code_2(
    archive: Path, tmp_path: Path, cli: Program, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    model = Path(__file__).parents[2] / "models" / "fpn-efficientnet-b2"
    places = {"ARCHIVE": archive, "EMPTY": tmp_path / "empty", "MODEL": model}
    ended = cli(*(places.get(word, word) for word in arguments))
    assert ended.code == 2
    assert told in ended.error
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dataset": {"path": "nowhere"}}, "nowhere"),
        ({"dataset": {"path": "ARCHIVE", "resolution": 20}}, "resolution 20 m is no multiple of its 15 m"),
        ({"fusion": {"enabled": True, "auxiliary": ["gain"]}}, "has no gain"),
        ({"architecture": {"backbone": {"name": "resnet19"}}}, "unknown backbone 'resnet19'; did you mean"),
        ({"split": {"kind": "blocks", "km": 5000}}, "blocks of 5000 km"),
        ({"calibration": "auto"}, "4 usable validation events are too few to choose a method by"),
        ({"training": {"stepps": 1}}, "unknown key training.stepps; did you mean 'steps'"),
    ],
)
def test_a_training_that_cannot_work_is_refused_before_it_starts(
    archive: Path, tmp_path: Path, cli: Program, changes: dict[str, Any], told: str
) -> None:
    if changes.get("dataset", {}).get("path") == "ARCHIVE":
        changes = {"dataset": {**changes["dataset"], "path": str(archive)}}
    ended = cli("train", _config(tmp_path / "try", archive, **changes))
    assert ended.code == 2
    assert told in ended.error
    assert not (tmp_path / "try" / "model").exists()
