"""The program: quick help, a plan that reads no pixels, schema, models, inspect."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml
from run_samples import PRODUCTS, ROOT, layer, ruin_pixels, write_config

HEAVY = ("torch", "torchgeo", "torchvision", "prefect", "distributed", "dask", "geopandas", "rasterio", "onnxruntime")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["train", "--help"], ["models", "--help"], ["schema"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        f"sys.argv = ['clearcause', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert len(done.stdout.splitlines()) > 5


def test_a_program_that_has_loaded_torchs_compiler_ends_without_a_word():
    code = "import sys, torch._dynamo\nfrom pipeline.cli import main\nsys.argv = ['clearcause', 'schema']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(cli):
    text = cli("--help").out
    for name in (
        "demo", "plan", "run", "inspect", "models", "schema", "train", "evaluate", "baseline", "dataset", "download",
    ):  # fmt: skip
        assert f" {name} " in text, name


def test_plan_prints_counts_and_reads_no_pixels(world, tiny_model, reference, tmp_path, cli):
    config = write_config(tmp_path / "sound", world, tiny_model)
    sound = cli("plan", config, "--json")
    assert sound.code == 0, sound.err
    counts = json.loads(sound.out)
    assert set(counts) >= {"events", "blocks", "scenes", "patches", "bytes", "seconds"}
    assert counts["events"] == len(layer(reference, "events"))
    assert (counts["blocks"], counts["scenes"], counts["scenes_refused"]) == (4, 2, 0)
    assert counts["loss_ha"] == pytest.approx((world.drawn > 0).sum() * 0.09, rel=2e-3)
    assert not (tmp_path / "sound" / "product").exists()

    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    for path in scenes.rglob("*.TIF"):
        ruin_pixels(path)
    ruined = cli("plan", write_config(tmp_path / "ruined", world, tiny_model, imagery__source=str(scenes)), "--json")
    assert ruined.code == 0, ruined.err
    assert json.loads(ruined.out) == counts


def test_plan_in_words_and_again(world, tiny_model, tmp_path, cli):
    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    (scenes / PRODUCTS[0] / f"{PRODUCTS[0]}_SR_B5.TIF").unlink()
    config = write_config(tmp_path, world, tiny_model, imagery__source=str(scenes))
    first, second = cli("plan", config), cli("plan", config)
    assert first == second
    assert "events" in first.out
    assert f"refused {PRODUCTS[0]}: no nir08 band" in first.out


def test_plan_counts_only_the_years_asked_for(world, tiny_model, tmp_path, cli):
    config = write_config(tmp_path, world, tiny_model)
    both = json.loads(cli("plan", config, "--json").out)
    each = [json.loads(cli("plan", config, "--json", "--year", str(year)).out) for year in (2021, 2022)]
    assert sum(counts["events"] for counts in each) == both["events"]
    assert sum(counts["loss_ha"] for counts in each) == pytest.approx(both["loss_ha"], abs=0.02)


def test_plan_and_run_say_the_same(world, tiny_model, tmp_path, cli):
    config = write_config(tmp_path, world, tiny_model)
    planned = json.loads(cli("plan", config, "--json").out)
    ended = cli("run", config, "--no-prefect", "--json")
    done = json.loads(ended.out)["counts"]
    for key in ("events", "blocks", "scenes", "patches"):
        assert planned[key] == done[key], key
    assert ended.err.count("block r") == planned["blocks"]


def test_schema_is_json_schema_and_the_configs_keep_it(cli, root):
    schema = json.loads(cli("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in sorted((root / "configs").glob("*.yaml")):
        validator.validate(yaml.safe_load(path.read_text()))
    tree = yaml.safe_load((root / "configs" / "brumadinho.yaml").read_text())
    assert not validator.is_valid({**tree, "colour": 1})
    assert not validator.is_valid({**tree, "imagery": {**tree["imagery"], "max_cloud": 101}})


def test_models(cli, tiny_model, tmp_path):
    shelf = tmp_path / "models"
    shutil.copytree(tiny_model, shelf / "sound")
    shutil.copytree(tiny_model, shelf / "broken")
    (shelf / "broken" / "model.json").write_text("{}")
    listed = json.loads(cli("models", "list", shelf, "--json").out)
    assert [(item["folder"].rsplit("/", 1)[1], bool(item["fault"])) for item in listed] == [
        ("broken", True),
        ("sound", False),
    ]
    assert "sound" in cli("models", "list", shelf).out
    card = json.loads(cli("models", "show", shelf / "sound", "--json").out)
    assert (card["name"], card["bands"][3]) == ("sample", "nir08")
    verified = cli("models", "verify", shelf / "sound")
    assert (verified.code, card["sha256"] in verified.out) == (0, True)
    weights = shelf / "sound" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    ended = cli("models", "verify", shelf / "sound")
    assert (ended.code, "sha256" in ended.error) == (2, True)
    assert cli("models", "show", shelf / "none").code == 2


def test_inspect_ends_with_0_1_or_2(cli, reference, tmp_path):
    ended = cli("inspect", reference)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, f"{reference}: sound")
    copy = tmp_path / "copy"
    shutil.copytree(reference, copy)
    (copy / "confidence.tif").write_bytes((copy / "drivers.tif").read_bytes())
    ended = cli("inspect", copy, "--json")
    assert (ended.code, json.loads(ended.out)["sound"]) == (1, False)
    ended = cli("inspect", tmp_path / "none")
    assert ended.code == 2
    assert "none" in ended.error


def test_out_and_year_override_the_file(world, tiny_model, tmp_path, cli):
    config = write_config(tmp_path, world, tiny_model)
    ended = cli("run", config, "--no-prefect", "--out", tmp_path / "elsewhere", "--year", "2022")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"published: {tmp_path / 'elsewhere'}\n")
    assert set(layer(tmp_path / "elsewhere", "events")["loss_year"]) == {2022}
    assert not (tmp_path / "product").exists()
