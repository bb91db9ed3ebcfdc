from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.config import RunConfig, load_config, parse_config
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TREE = {
    "region": {"name": "riau", "aoi": [101.0, -0.5, 101.5, 0.5]},
    "loss": {"source": "loss.tif", "years": [2021, 2020]},
    "imagery": {"source": "scenes"},
    "model": "models/net",
    "output": {"dir": "out/riau"},
}


def tree_with(key, value):
    tree = copy.deepcopy(TREE)
    *sections, last = key.split(".")
    part = tree
    for name in sections:
        part = part.setdefault(name, {})
    part[last] = value
    return tree


def parse(tree, *overrides):
    return parse_config(copy.deepcopy(tree), Path("/base"), "run.yaml", overrides)


def test_there_are_configurations_to_check():
    assert {path.stem for path in CONFIGS} >= {"demo", "brumadinho"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_project_loads(path):
    config = load_config(path)
    assert config.model.is_absolute()
    assert config.model.parent == ROOT / "models"
    assert config.work.parent == config.output.dir.parent


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_project_meets_the_json_schema(path):
    jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), RunConfig.model_json_schema())


def test_the_smallest_configuration_has_the_documented_defaults():
    config = parse(TREE)
    assert config.loss.years == (2020, 2021)
    assert (config.loss.min_area_ha, config.imagery.max_cloud, config.imagery.max_scenes) == (0.5, 60, 12)
    assert (config.imagery.window.first_year, config.imagery.window.last_year) == (0, 4)
    assert (config.grid.crs, config.grid.resolution, config.grid.block) == ("auto", 30, 2048)
    assert (config.tiling.mode, config.tiling.patch, config.tiling.stride) == ("grid", 256, 192)
    assert (config.output.crs, config.output.uncertain_below) == ("EPSG:4326", 0.5)
    assert config.work == Path("/base/out/riau.work")


@pytest.mark.parametrize(
    ("key", "named", "meant"),
    [
        ("reigon", "reigon", "region"),
        ("region.nam", "region.nam", "name"),
        ("imagery.max_clouds", "imagery.max_clouds", "max_cloud"),
        ("imagery.window.frist_year", "imagery.window.frist_year", "first_year"),
        ("compute.worker", "compute.worker", "workers"),
    ],
)
def test_an_unknown_key_is_refused_with_file_key_and_the_nearest_known_one(key, named, meant):
    with pytest.raises(ConfigError) as error:
        parse(tree_with(key, 1))
    assert str(error.value) == f"configuration run.yaml: unknown key {named}; did you mean {meant!r}?"


def test_an_unknown_key_inside_a_list_says_which_entry():
    tree = tree_with("overlays", [{"name": "peat", "path": "peat.gpkg"}, {"name": "gap", "path": "x", "layre": "y"}])
    with pytest.raises(ConfigError, match=r"unknown key overlays\.1\.layre; did you mean 'layer'"):
        parse(tree)


def test_an_unknown_key_like_none_points_to_the_schema():
    with pytest.raises(ConfigError, match=r"unknown key grid\.xyzzyx; `clearcause schema` lists the keys"):
        parse(tree_with("grid.xyzzyx", 1))


@pytest.mark.parametrize("section", ["region", "loss", "imagery", "model", "output"])
def test_a_missing_section_is_named(section):
    tree = {key: value for key, value in TREE.items() if key != section}
    with pytest.raises(ConfigError, match=f"run.yaml: key {section} is missing"):
        parse(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("region.name", "../escape"),
        ("region.aoi", [1, 2, 3]),
        ("region.aoi", 7),
        ("loss.years", []),
        ("loss.years", ["soon"]),
        ("loss.years", [2020, 2020]),
        ("loss.min_area_ha", -1),
        ("imagery.max_cloud", 101),
        ("imagery.max_scenes", 0),
        ("imagery.window", {"first_year": 2, "last_year": 1}),
        ("grid.resolution", 0),
        ("grid.block", 31),
        ("tiling.patch", 100),
        ("tiling.overlap", 200),
        ("tiling.mode", "diagonal"),
        ("compute.executor", "cluster"),
        ("compute.workers", 0),
        ("compute.precision", "fp8"),
        ("overlays", [{"name": "Peat Land", "path": "peat.gpkg"}]),
        ("output.uncertain_below", 1.5),
        ("output", None),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_file_and_the_key(key, value):
    with pytest.raises(ConfigError) as error:
        parse(tree_with(key, value))
    text = str(error.value)
    assert text.startswith(f"configuration run.yaml: {key.split('.')[0]}")
    assert key.split(".")[-1] in text
    assert "\n" not in text


@pytest.mark.parametrize("executor", ["local", "threads", "tcp://10.0.0.1:8786", "tls://scheduler:8786"])
def test_executors(executor):
    assert parse(tree_with("compute.executor", executor)).compute.executor == executor


def test_overrides_win_are_yaml_and_reach_nested_keys():
    config = parse(TREE, "tiling.mode=events", "loss.years=[2019]", "imagery.window.last_year=2", "output.dir= x=y")
    assert config.tiling.mode == "events"
    assert config.loss.years == (2019,)
    assert config.imagery.window.last_year == 2
    assert config.output.dir == Path("/base/x=y")
    assert parse(TREE, "loss.years=[2019]", "loss.years=[2018]").loss.years == (2018,)


@pytest.mark.parametrize("text", ["tiling.mode", "=events", "tiling..mode=events", "model.x=1", "grid.crs=[1"])
def test_an_override_that_cannot_work_is_quoted(text):
    with pytest.raises(ConfigError, match="option -o") as error:
        parse(TREE, text)
    assert text in str(error.value)


def test_an_override_with_an_unknown_key_is_refused_like_any_other():
    with pytest.raises(ConfigError, match=r"unknown key tiling\.moed; did you mean 'mode'"):
        parse(TREE, "tiling.moed=events")


def test_paths_are_relative_to_the_file_wherever_the_program_runs(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    tree = copy.deepcopy(TREE) | {"overlays": [{"name": "peat", "path": "peat.gpkg"}], "model": "../models/net"}
    tree["region"] |= {"aoi": "aoi.gpkg", "units": {"path": "admin.gpkg"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    monkeypatch.chdir(tmp_path)
    relative = load_config(Path("configs/run.yaml"))
    assert relative == load_config(folder / "run.yaml")
    assert relative.region.aoi == folder / "aoi.gpkg"
    assert relative.region.units[0].path == folder / "admin.gpkg"
    assert relative.loss.source == str(folder / "loss.tif")
    assert relative.imagery.source == str(folder / "scenes")
    assert relative.imagery.cache == folder / "cache"
    assert relative.model == tmp_path / "models" / "net"
    assert relative.overlays[0].path == folder / "peat.gpkg"
    assert relative.output.dir == folder / "out" / "riau"


def test_what_is_no_path_stays_as_it_is():
    assert parse(tree_with("loss.source", "gfc")).loss.source == "gfc"
    for source in ("planetary-computer", "earth-search", "usgs", "https://example.org/stac"):
        assert parse(tree_with("imagery.source", source)).imagery.source == source
    assert parse(tree_with("region.aoi", [1, 2, 3, 4])).region.aoi == (1, 2, 3, 4)
    assert parse(tree_with("model", "/models/net")).model == Path("/models/net")


def test_one_list_of_units_may_stand_alone_or_in_a_list():
    alone, listed = ({"path": "admin.gpkg", "id": "ID"}, [{"path": "admin.gpkg", "id": "ID"}])
    assert parse(tree_with("region.units", alone)) == parse(tree_with("region.units", listed))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"region: [", "not YAML"),
        (b"\xff\xfe\xfa", "not YAML"),
        (b"- a\n- b\n", "expected keys"),
        (b"", "expected keys"),
        (b"!!python/object/apply:os.getcwd []", "not YAML"),
        (b"#" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, said):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_config(tmp_path / "absent.yaml")


def test_a_configuration_survives_json_and_its_schema():
    schema = RunConfig.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    config = parse(tree_with("region.units", {"path": "admin.gpkg"}), "compute.workers=3", "loss.layer=deforestation")
    text = config.model_dump_json()
    assert RunConfig.model_validate_json(text) == config
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("key", ["reigon", "imagery.window.frist_year"])
def test_the_schema_refuses_unknown_keys_too(key):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree_with(key, 1), RunConfig.model_json_schema())


def test_a_key_written_twice_is_refused(tmp_path: Path, root: Path) -> None:
    text = (root / "configs" / "brumadinho.yaml").read_text(encoding="utf-8")
    path = tmp_path / "twice.yaml"
    path.write_text(text + "\nmodel: other\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*'model' is written twice"):
        load_config(path)
