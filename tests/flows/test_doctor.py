"""The doctor on sound and on broken ground: real files, a real HTTP server, a Dask scheduler that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_server import Plan, serve
from run_samples import Program, World, write_config


def states(out: str) -> dict[str, str]:
    return {line.split()[1]: line.split()[0] for line in out.splitlines()}


def test_of_the_machine_alone(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ended = cli("doctor")
    assert ended.code == 0
    found = states(ended.out)
    assert found["Python"] == found["machine"] == "ok"
    assert found["Prefect"] == "note"
    assert found["GPU"] in ("ok", "note")


def test_of_a_sound_configuration(cli: Program, tmp_path: Path, world: World, tiny_model: Path) -> None:
    config = write_config(tmp_path, world, tiny_model)
    ended = cli("doctor", config)
    assert ended.code == 0, ended.out
    found = states(ended.out)
    assert found["model"] == "note", "it says that this model is simulated"
    assert {found[key] for key in ("files", "output.dir", "imagery.cache", "Dask", "imagery.source")} <= {"ok", "note"}


def test_every_fault_is_one_line(
    cli: Program, tmp_path: Path, world: World, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    config = write_config(tmp_path, world, tiny_model)
    broken = (
        f"model={tmp_path}", "compute.executor=tcp://127.0.0.1:9", f"loss.source={tmp_path / 'none.tif'}",
        "imagery.source=http://127.0.0.1:9/stac",
    )  # fmt: skip
    ended = cli("doctor", config, "--json", *(word for text in broken for word in ("-o", text)))
    assert ended.code == 1
    faults = {item["check"]: item["text"] for item in json.loads(ended.out) if item["state"] == "fault"}
    assert set(faults) == {"Prefect", "model", "Dask", "loss.source", "imagery.source"}
    assert "allow_hosts" in faults["imagery.source"]
    assert "no such file" in faults["loss.source"]


def test_an_archive_that_answers(cli: Program, tmp_path: Path, world: World, tiny_model: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "stac").write_text("{}")
    with serve(tmp_path / "www") as server:
        config = write_config(
            tmp_path, world, tiny_model, imagery={"source": server.url("stac"), "allow_hosts": ["127.0.0.1"]}
        )
        assert "answers 200" in cli("doctor", config).out
        server.plan = Plan(share=1.0, faults=("503",))
        ended = cli("doctor", config)
    assert ended.code == 1
    assert "answers 503" in ended.out
