"""Engines: torch and ONNX Runtime say the same, and an image's logits are its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from model_samples import BANDS, card_fields, random_network, random_package

from pipeline.errors import ModelError
from pipeline.models.agreement import AGREEMENT
from pipeline.models.card import Part, read_card
from pipeline.models.engines import MOST_PATCHES, check_engine, open_ahead, open_segmenter, segmenter_for_worker
from pipeline.models.exported import CACHE_VARIABLE, export_onnx
from pipeline.models.onnx_engine import OnnxEngine
from pipeline.models.openvino_engine import OpenVinoEngine
from pipeline.models.package import import_onnx, save_package, verify_package
from pipeline.models.prepare import prepare, random_patch
from pipeline.models.store import load_package
from pipeline.models.torch_engine import TorchEngine, batch_for


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_package(folder)
    return folder


def patches(folder: Path) -> np.ndarray:
    patch = random_patch(read_card(folder))
    holes = patch.copy()
    holes[:, :, 10:40, 5:60] = np.nan
    return np.concatenate([patch, holes, np.full_like(patch, np.nan), patch * 0.5])


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_an_image_does_not_depend_on_its_batch(folder: Path, engine: str) -> None:
    segmenter = open_segmenter(folder, engine, device="cpu")  # type: ignore[arg-type]
    images = patches(folder)
    before = images.copy()
    together = segmenter.logits(images)
    assert together.shape == (4, 4, 64, 64)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(images, before)
    for index in range(4):
        np.testing.assert_array_equal(segmenter.logits(images[index : index + 1])[0], together[index])
    assert segmenter.logits(images[:0]).shape == (0, 4, 64, 64)


def test_engines_agree(folder: Path) -> None:
    kinds = {"torch": TorchEngine, "onnx": OnnxEngine, "openvino": OpenVinoEngine}
    images, said = patches(folder), {}
    for engine, kind in kinds.items():
        opened = open_segmenter(folder, engine, device="cpu")  # type: ignore[arg-type]
        assert isinstance(opened, kind)
        said[engine] = opened.logits(images)
    np.testing.assert_allclose(said["torch"], said["onnx"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(said["onnx"], said["openvino"], rtol=0, atol=1e-4)


def able(precision: str) -> bool:
    import openvino

    return precision.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_cpu_is_openvinos_and_how_far_it_agrees_is_said(folder: Path, precision: str) -> None:
    if not able(precision):
        with pytest.raises(ModelError, match=f"precision {precision}: this processor does not compute it"):
            open_segmenter(folder, device="cpu", precision=precision)  # type: ignore[arg-type]
        return
    half = open_segmenter(folder, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert isinstance(half, OpenVinoEngine)
    full, images = open_segmenter(folder, "onnx", "cpu"), patches(folder)
    difference = np.abs(half.logits(images) - full.logits(images)).max()
    assert 1e-6 < difference < 0.3
    found = check_engine(folder, "auto", precision)  # type: ignore[arg-type]
    assert found is not None
    assert 0.95 < found.argmax_agreement <= 1
    assert 0 < found.max_probability_difference < 0.1
    assert "random patch" in str(found)


def test_what_was_exported_and_checked_is_not_opened_once_more(folder: Path, tmp_path: Path) -> None:
    segmenter_for_worker.cache_clear()
    export_onnx(folder)
    assert check_engine(folder, "auto", "auto") is None
    assert segmenter_for_worker.cache_info().currsize == 0
    card = json.loads((folder / "model.json").read_text())
    del card["sha256"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    import_onnx(export_onnx(folder), tmp_path / "card.json", tmp_path / "graph")
    assert check_engine(tmp_path / "graph", "auto", "auto") is None
    assert segmenter_for_worker.cache_info().currsize == 1, "nobody has opened this one yet"


def test_a_model_is_opened_ahead_unless_it_must_be_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(folder)
    opened = []
    for cache in (tmp_path, Path(os.environ[CACHE_VARIABLE])):
        monkeypatch.setenv(CACHE_VARIABLE, str(cache))
        segmenter_for_worker.cache_clear()
        open_ahead(folder, "auto", "auto")
        opened.append(segmenter_for_worker.cache_info().currsize)
    assert opened == [0, 1]
    # as a block asks for it
    segmenter_for_worker(folder, "auto", "auto", "auto")
    assert segmenter_for_worker.cache_info().currsize == 1


def test_plain_engines_need_no_comparison_and_openvino_in_float32_passes_it(folder: Path) -> None:
    assert check_engine(folder, "onnx", "auto") is None
    assert check_engine(folder, "torch", "auto") is None
    found = check_engine(folder, "openvino", "fp32")
    assert found is not None
    assert found.argmax_agreement >= AGREEMENT


def test_an_openvino_that_names_other_classes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = OpenVinoEngine.logits
    monkeypatch.setattr(OpenVinoEngine, "logits", lambda self, images: logits(self, images)[:, ::-1])
    with pytest.raises(ModelError, match=r"OpenVINO names another class than ONNX Runtime on .*; set engine: onnx"):
        check_engine(folder, "openvino", "auto")


def test_half_precision_of_onnx_runtime_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="precision bf16: ONNX Runtime computes in float32; set engine: openvino"):
        open_segmenter(folder, "onnx", "cpu", "bf16")


def test_without_openvino_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"not installed; pip install 'clearcause\[openvino\]'"):
        open_segmenter(folder, "openvino", "cpu")


def test_damage_is_told_by_openvino_in_a_line(folder: Path) -> None:
    with pytest.raises(ModelError, match="OpenVINO cannot load it") as error:
        OpenVinoEngine(read_card(folder), b"no graph", "here")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet-b0", "tu-swin_tiny_patch4_window7_224", "tu-vit_tiny_patch16_224"])
@pytest.mark.parametrize("neck", ["unet", "deeplabv3plus"])
def test_other_architectures_export_and_agree(backbone: str, neck: str, tmp_path: Path) -> None:
    settings = {"image_size": 64} if backbone.startswith("tu-") else {}
    fields = card_fields(Part(name=backbone, settings=settings), Part(name=neck))
    save_package(tmp_path / "model", random_network(fields), fields)
    one, other = (open_segmenter(tmp_path / "model", engine, device="cpu") for engine in ("torch", "onnx"))
    images = patches(tmp_path / "model")
    np.testing.assert_allclose(one.logits(images), other.logits(images), rtol=0, atol=1e-3)


def test_auto_on_a_cpu_is_onnx_and_exports_once(folder: Path) -> None:
    assert isinstance(open_segmenter(folder, device="cpu"), OnnxEngine)
    graph = export_onnx(folder)
    written = graph.stat().st_mtime_ns
    assert export_onnx(folder) == graph
    assert graph.stat().st_mtime_ns == written
    told = json.loads(graph.with_suffix(".json").read_text())
    assert told["argmax_agreement"] >= 0.9999
    assert told["max_abs_difference"] < 1e-3
    assert graph.name.startswith(read_card(folder).sha256)


def test_a_damaged_cached_graph_is_exported_anew(folder: Path) -> None:
    graph = export_onnx(folder)
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-100])
    assert export_onnx(folder).stat().st_size == len(whole)


def test_without_a_cache_auto_falls_back_to_torch_and_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(blocked))
    assert isinstance(open_segmenter(folder, device="cpu"), TorchEngine)
    assert "running on torch" in caplog.text
    with pytest.raises(ModelError, match=f"cannot be used.*set {CACHE_VARIABLE}"):
        open_segmenter(folder, "onnx", device="cpu")


def test_normalisation_by_hand(folder: Path) -> None:
    card = read_card(folder)
    image = np.tile(np.array(card.scaling.mean, np.float32).reshape(1, 6, 1, 1), (1, 1, 64, 64))
    image[0, 3, 0, 0] += np.float32(2 * card.scaling.std[3])
    image[0, :, 0, 1] = np.nan
    expected = np.zeros((1, 6, 64, 64), np.float32)
    expected[0, 3, 0, 0] = 2
    np.testing.assert_allclose(prepare(image, card), expected, atol=1e-5)


def test_what_does_not_fit_the_card_is_refused(folder: Path) -> None:
    card = read_card(folder)
    good = random_patch(card)
    with pytest.raises(ModelError, match=r"takes \[N, 6, 64, 64\] \(bands blue, .*got \[1, 5, 64, 64\]"):
        prepare(good[:, :5], card)
    with pytest.raises(ModelError, match=r"got \[1, 6, 32, 64\]"):
        prepare(good[:, :, :32], card)
    numbers = good.copy()
    numbers[:, 2] = 9000.0
    with pytest.raises(ModelError, match=f"scaling out of range: band {BANDS[2]} has a median of 9000"):
        prepare(numbers, card)
    bright = good.copy()
    bright[:, :, :8, :8] = 30.0  # a few glints are not a wrong scaling
    assert np.isfinite(prepare(bright, card)).all()


def test_half_precision_of_torch_is_refused_on_a_cpu(folder: Path) -> None:
    with pytest.raises(ModelError, match="precision bf16 needs a GPU"):
        open_segmenter(folder, "torch", "cpu", "bf16")


def test_a_worker_opens_a_model_once(folder: Path) -> None:
    first = segmenter_for_worker(folder, "torch", "cpu")
    assert segmenter_for_worker(folder, "torch", "cpu") is first


def test_import_of_a_graph_makes_a_package_that_says_the_same(folder: Path, tmp_path: Path) -> None:
    graph = export_onnx(folder)
    card = json.loads((folder / "model.json").read_text())
    del card["sha256"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    imported = tmp_path / "imported"
    import_onnx(graph, tmp_path / "card.json", imported)
    assert verify_package(imported) == read_card(imported)
    assert load_package(imported).is_onnx
    images = patches(folder)
    np.testing.assert_array_equal(
        open_segmenter(imported, device="cpu").logits(images), open_segmenter(folder, "onnx", "cpu").logits(images)
    )
    with pytest.raises(ModelError, match="only the onnx engine"):
        open_segmenter(imported, "torch", device="cpu")


def test_import_refuses_a_card_that_promises_something_else(folder: Path, tmp_path: Path) -> None:
    graph = export_onnx(folder)
    card = json.loads((folder / "model.json").read_text())
    for change, told in [
        ({}, "sha256 is"),
        ({"sha256": None, "labels": card["labels"][:3]}, r"returns float32 \[1, 4, 64, 64\], its card promises"),
        (
            {"sha256": None, "patch": {"size": 96, "stride": 48}},
            r"takes .*64, 64\], but the card says \['n', 6, 96, 96\] \(NCHW\): correct patch.size",
        ),
    ]:
        fields = {key: value for key, value in {**card, **change}.items() if value is not None}
        (tmp_path / "card.json").write_text(json.dumps(fields))
        with pytest.raises(ModelError, match=told):
            import_onnx(graph, tmp_path / "card.json", tmp_path / "imported")
    shutil.copy(folder / "model.safetensors", tmp_path / "not.onnx")
    (tmp_path / "card.json").write_text(json.dumps({key: value for key, value in card.items() if key != "sha256"}))
    with pytest.raises(ModelError, match="ONNX Runtime cannot load it"):
        import_onnx(tmp_path / "not.onnx", tmp_path / "card.json", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("free", "one", "batch"),
    [(100, 10, 4), (120, 10, 8), (1, 10, 1), (0, 10, 1), (1e12, 10, MOST_PATCHES), (100, 0, 64)],
)
def test_a_batch_is_what_memory_takes(free: float, one: float, batch: int) -> None:
    assert batch_for(free, one) == batch


def test_a_batch_that_does_not_fit_is_halved_and_the_size_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: memory that takes two patches is played by the forward pass."""
    import torch

    engine = TorchEngine(load_package(folder))
    images = patches(folder)
    expected = engine.logits(images)
    tried: list[int] = []
    run = engine._run

    def small(inputs: torch.Tensor) -> np.ndarray:
        tried.append(len(inputs))
        if len(inputs) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return np.concatenate([run(one[None]) for one in inputs])

    monkeypatch.setattr(engine, "_run", small)
    engine.batch = 8
    np.testing.assert_array_equal(engine.logits(images), expected)
    assert tried == [4, 4, 2, 2]
    assert engine.batch == 2
    tried.clear()
    engine.logits(images)
    assert tried == [2, 2]
    monkeypatch.setattr(engine, "_run", lambda _: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("out of memory")))
    with pytest.raises(ModelError, match="one patch does not fit into the GPU's memory"):
        engine.logits(images)
