"""What a backbone starts from: files, hub caches filled with files in the hubs' own layout, and what must not run."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.models.backbones import build_backbone
from pipeline.models.card import Part
from pipeline.models.weights import starting_scaling, widen

SIX = ("blue", "green", "red", "nir08", "swir16", "swir22")
LANDSAT = "ResNet18_Weights.LANDSAT_OLI_SR_MOCO"


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of both hubs, and no way out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def landsat_file(hubs: Path, weights: str = LANDSAT) -> Path:
    """Where torch's hub keeps torchgeo's file."""
    from torchgeo.models import get_weight

    path = hubs / "torch" / "hub" / "checkpoints" / str(get_weight(weights).url).rsplit("/", 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def snapshot(hubs: Path, repo: str, revision: str) -> Path:
    """Folder of one revision in the cache of the Hugging Face hub; `main` points to it."""
    folder = hubs / "hf" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    return folder / "snapshots" / revision


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """Kernels [out, in, h, w] whose value is the number of their input band."""
    return torch.arange(shape[1], dtype=torch.float32).reshape(1, -1, 1, 1).expand(shape).clone()


def test_a_band_takes_its_own_kernel_and_others_copy_red() -> None:
    weight = numbered((2, 3, 1, 1)) + 1  # red 1, green 2, blue 3
    assert (widen(weight, ("red", "green", "blue"), SIX)[0].flatten() * 2).tolist() == [3, 2, 1, 1, 1, 1]
    assert widen(weight, ("red", "green", "blue"), ("blue", "green", "red"))[0].flatten().tolist() == [3, 2, 1]
    assert (widen(weight, 3, 6)[0].flatten() * 2).tolist() == [1, 2, 3, 1, 2, 3]
    # equal kernels: a grey image gives the same sum, whatever the number of bands
    assert float(widen(torch.ones(1, 3, 1, 1), ("red", "green", "blue"), SIX).sum()) == 3


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
def test_landsat_weights_reach_the_encoder_band_by_band(name: str, hubs: Path) -> None:
    state = timm.create_model("resnet18", in_chans=7).state_dict()
    state["conv1.weight"] = numbered(state["conv1.weight"].shape)
    torch.save(state, landsat_file(hubs))
    part = Part(name=name, settings={"weights": LANDSAT})
    loaded = build_backbone(part, SIX).encoder.state_dict()
    # the file's bands: coastal, blue, green, red, nir08, swir16, swir22
    assert (loaded["conv1.weight"][0, :, 0, 0] * 6 / 7).tolist() == pytest.approx([1, 2, 3, 4, 5, 6])
    same = [key for key in loaded if key != "conv1.weight"]
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    swapped = build_backbone(part, ("swir22", "red", "coastal")).encoder.state_dict()
    assert (swapped["conv1.weight"][0, :, 0, 0] * 3 / 7).tolist() == pytest.approx([6, 3, 0])
    with pytest.raises(ModelError, match="need the names of the bands"):
        build_backbone(part, 6)
    with pytest.raises(ModelError, match="are those of resnet18"):
        build_backbone(Part(name="resnet50", settings={"weights": LANDSAT}), SIX)


@pytest.mark.slow
def test_landsat_weights_of_a_transformer(hubs: Path) -> None:
    weights = "ViTSmall16_Weights.LANDSAT_ETM_SR_SIMCLR"
    state = timm.create_model("vit_small_patch16_224", in_chans=6).state_dict()
    torch.save(state, landsat_file(hubs, weights))
    settings = {"weights": weights, "image_size": 224}
    backbone = build_backbone(Part(name="tu-vit_small_patch16_224", settings=settings), SIX)
    loaded = backbone.encoder.model.state_dict()
    assert torch.equal(loaded["patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    assert torch.equal(loaded["blocks.11.mlp.fc2.weight"], state["blocks.11.mlp.fc2.weight"])
    # another size of image: positions are resampled, the rest stays
    smaller = Part(name="tu-vit_small_patch16_224", settings={**settings, "image_size": 64})
    other = build_backbone(smaller, SIX).encoder.model.state_dict()
    assert other["pos_embed"].shape[1] == 17
    assert torch.equal(other["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_landsat_weights_say_their_scaling() -> None:
    scaling = starting_scaling(LANDSAT, SIX)
    assert scaling is not None
    assert (scaling.clip, scaling.mean, scaling.std) == ((0, 0.3), (0.0,) * 6, (0.3,) * 6)
    toa = starting_scaling("ResNet50_Weights.LANDSAT_OLI_TIRS_TOA_MOCO", SIX)
    assert toa is not None
    assert toa.clip == (0, 0.4)
    assert starting_scaling("imagenet", SIX) is None
    assert starting_scaling(None, SIX) is None


def test_imagenet_weights_of_smp_come_from_the_hubs_cache(hubs: Path) -> None:
    source = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = snapshot(hubs, source["repo_id"], source["revision"])
    state = {key: value.contiguous() for key, value in smp.encoders.get_encoder("resnet18").state_dict().items()}
    state["conv1.weight"] = numbered(state["conv1.weight"].shape)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    loaded = build_backbone(Part(name="resnet18", settings={"weights": "imagenet"}), SIX).encoder.state_dict()
    assert (loaded["conv1.weight"][0, :, 0, 0] * 2).tolist() == [2, 1, 0, 0, 0, 0]
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if key != "conv1.weight")


def test_imagenet_weights_of_timm_come_from_the_hubs_cache(hubs: Path) -> None:
    repo = timm.get_pretrained_cfg("resnet10t").hf_hub_id
    model = timm.create_model("resnet10t")
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    state["conv1.0.weight"] = numbered(state["conv1.0.weight"].shape)
    name = repo if repo.count("/") else f"timm/{repo}"
    save_file(state, snapshot(hubs, name, "0" * 40) / "model.safetensors")
    loaded = build_backbone(Part(name="tu-resnet10t", settings={"weights": "imagenet"}), SIX).encoder.state_dict()
    assert (loaded["conv1.0.weight"][0, :, 0, 0] * 2).tolist() == [2, 1, 0, 0, 0, 0]
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if key != "conv1.0.weight")


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t"])
def test_without_a_cache_the_error_says_what_to_do(name: str, hubs: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be had.*name a \.safetensors file, or set weights: null"):
        build_backbone(Part(name=name, settings={"weights": "imagenet"}), SIX)


def test_unknown_landsat_weights_are_refused() -> None:
    for weights in ("ResNet18_Weights.LANDSAT_OLI_SR_MOCCO", "ResNet18_Weights.SENTINEL2_ALL_MOCO"):
        with pytest.raises(ModelError, match=r"unknown Landsat weights .* did you mean ResNet18_Weights\.LANDSAT"):
            build_backbone(Part(name="resnet18", settings={"weights": weights}), SIX)


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
def test_a_pickle_in_the_hubs_cache_does_not_run(name: str, hubs: Path) -> None:
    torch.save({"conv1.weight": Bomb(hubs / "canary")}, landsat_file(hubs))
    with pytest.raises(ModelError, match="cannot be had"):
        build_backbone(Part(name=name, settings={"weights": LANDSAT}), SIX)
    assert not (hubs / "canary").exists()
    shutil.copy(landsat_file(hubs), hubs / "bomb.safetensors")
    with pytest.raises(ModelError, match="no readable safetensors"):
        build_backbone(Part(name=name, settings={"weights": str(hubs / "bomb.safetensors")}), SIX)
    assert not (hubs / "canary").exists()
    pickle.loads(pickle.dumps(Bomb(hubs / "canary")))
    assert (hubs / "canary").exists(), "the bomb is live"


def test_a_file_of_another_number_of_bands_is_refused(tmp_path: Path) -> None:
    save_file(build_backbone(Part(name="resnet18"), 4).encoder.state_dict(), tmp_path / "four.safetensors")
    part = Part(name="resnet18", settings={"weights": str(tmp_path / "four.safetensors")})
    with pytest.raises(ModelError, match=r"take 4 bands; a file must take 3 \(red, green, blue\) or the model's own 6"):
        build_backbone(part, SIX)


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t", "tu-convnext_atto"])
def test_a_file_of_the_models_own_bands_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    state = {
        key: value.contiguous() for key, value in build_backbone(Part(name=name), SIX).encoder.state_dict().items()
    }
    save_file(state, tmp_path / "own.safetensors")
    part = Part(name=name, settings={"weights": str(tmp_path / "own.safetensors")})
    loaded = build_backbone(part, SIX).encoder.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t"])
def test_weights_from_a_file_reach_the_encoder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = build_backbone(Part(name=name), 3)
    inner = source.encoder
    state = {key: value.contiguous() for key, value in inner.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    loaded = build_backbone(Part(name=name, settings={"weights": str(path)}), 6).encoder.state_dict()
    same = [key for key in state if loaded[key].shape == state[key].shape]
    assert len(same) == len(state) - 1  # all but the first convolution, which had 3 bands
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    first = next(key for key in state if key not in same)
    assert loaded[first].shape[1] == 6
    assert float(loaded[first].abs().sum()) > 0


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t"])
def test_weights_of_another_network_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"something.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=r"weights .* (cannot be had|fit only 0 of)"):
        build_backbone(Part(name=name, settings={"weights": str(path)}), 6)
