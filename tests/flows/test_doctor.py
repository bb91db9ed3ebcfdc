"""The doctor on sound and on broken ground: real files, a real HTTP server, a Dask scheduler that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_server import Plan, StacItems, serve
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
    assert "connection failed" in faults["imagery.source"]
    assert "no such file" in faults["loss.source"]


def test_an_archive_that_answers(cli: Program, tmp_path: Path, world: World, tiny_model: Path) -> None:
    stac = StacItems([])
    with serve(stac) as server:
        stac.url = server.url("stac")
        source = {"source": stac.url, "allow_hosts": ["127.0.0.1"]}
        config = write_config(tmp_path, world, tiny_model, imagery=source)
        ended = cli("doctor", config)
        assert ended.code == 0
        assert "answers 200" in ended.out
        assert "allow_hosts" not in ended.out
        ended = cli("doctor", config, "-o", "imagery.allow_hosts=[]")
        assert ended.code == 0, "a private host may be searched, as the configuration names it"
        assert "note  imagery.source" in ended.out
        assert "imagery.allow_hosts" in ended.out, "its files need a word more"
        for fault, told in (("503", "answers 503"), ("html", "no STAC API"), ("expired", "answers 403")):
            server.plan = Plan(share=1.0, faults=(fault,))
            ended = cli("doctor", config)
            assert ended.code == 1
            assert told in ended.out
