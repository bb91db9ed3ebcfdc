"""Packages: the card vouches for the weights, and nothing that does not match it is ever parsed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import card_fields, random_network, random_package
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.models.card import Part, read_card
from pipeline.models.package import load_network, save_package, verify_package
from pipeline.models.prepare import random_patch
from pipeline.models.store import list_packages, load_package
from pipeline.models.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sound"
    random_package(folder)
    return folder


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "package"))


def test_sound_package_verifies(sound: Path) -> None:
    assert verify_package(sound) == read_card(sound)
    assert sorted(path.name for path in sound.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("position", [0, 9, -1])
def test_one_flipped_bit_is_refused_before_parsing(package: Path, position: int) -> None:
    weights = package / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[position] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: sha256 is [0-9a-f]{64}, the card says [0-9a-f]{64}"):
        load_package(package)


def test_weights_swapped_after_the_check_are_refused(package: Path) -> None:
    checked = load_package(package)
    (package / "model.safetensors").write_bytes(b"another file")
    with pytest.raises(ModelError, match="damaged or altered"):
        load_network(checked)


def test_weights_of_another_architecture_are_refused(package: Path) -> None:
    card = json.loads((package / "model.json").read_text())
    card["backbone"]["name"] = "resnet34"
    (package / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"do not fit the card's architecture: \d+ missing \(first backbone"):
        verify_package(package)


def test_saving_refuses_a_card_of_another_network(tmp_path: Path) -> None:
    network = random_network(card_fields(Part(name="resnet18")))
    with pytest.raises(ModelError, match="do not fit the card's architecture"):
        save_package(tmp_path / "model", network, card_fields(Part(name="resnet34")))
    assert not (tmp_path / "model").exists()


def test_half_is_smaller_and_names_the_same_classes(tmp_path: Path) -> None:
    cards = [random_package(tmp_path / name, half=name == "half") for name in ("full", "half")]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.52 * sizes[0]
    full, half = (
        TorchEngine(load_package(tmp_path / name)).logits(random_patch(cards[0])) for name in ("full", "half")
    )
    assert (full.argmax(1) == half.argmax(1)).mean() > 0.99
    assert not np.array_equal(full, half)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.ndim >= 2} == {torch.float16}
    assert {value.dtype for name, value in stored.items() if "running" in name} == {torch.float32}


def test_neither_or_both_weights_are_refused(package: Path) -> None:
    (package / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="both of"):
        load_package(package)
    for name in ("model.onnx", "model.safetensors"):
        (package / name).unlink()
    with pytest.raises(ModelError, match="neither of"):
        load_package(package)


def test_a_pickle_is_no_package(package: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, package / "model.pth")
    (package / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="neither of"):
        load_package(package)


def test_listing_tells_faults_and_goes_on(package: Path) -> None:
    broken = package.parent / "broken"
    broken.mkdir()
    (broken / "model.json").write_text("{}")
    (package.parent / "notes").mkdir()
    listed = list_packages(package.parent)
    assert [(one.folder.name, one.card is None, bool(one.fault)) for one in listed] == [
        ("broken", True, True),
        ("package", False, False),
    ]
    assert [one.name for one in listed] == ["broken", "sample 1"]


def test_saving_beside_an_onnx_graph_is_refused(package: Path) -> None:
    (package / "model.safetensors").rename(package / "model.onnx")
    fields = card_fields(Part(name="resnet18"))
    with pytest.raises(ModelError, match=r"holds a model\.onnx already"):
        save_package(package, random_network(fields), fields)


def test_foreign_safetensors_file_with_right_digest_is_refused(package: Path) -> None:
    save_file({"x": torch.zeros(2)}, package / "model.safetensors")
    card = json.loads((package / "model.json").read_text())
    card["sha256"] = hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()
    (package / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"1 foreign \(first x\)"):
        verify_package(package)


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pkl", "pytorch_model.bin", "region.pkl"])
def test_a_pickle_in_a_package_does_not_run(package: Path, name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"weight": Bomb(canary)}, package / name)
    verify_package(package)
    list_packages(package)
    (package / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither of model\.safetensors and model\.onnx"):
        verify_package(package)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
@pytest.mark.parametrize("plain", [False, True], ids=["torch", "pickle"])
def test_a_pickle_in_the_place_of_weights_does_not_run(package: Path, name: str, plain: bool, tmp_path: Path) -> None:
    """Even where the digest on the card is that of the pickle."""
    canary = tmp_path / "canary"
    (package / "model.safetensors").unlink()
    if plain:
        (package / name).write_bytes(pickle.dumps(Bomb(canary)))
    else:
        torch.save({"weight": Bomb(canary)}, package / name)
    with pytest.raises(ModelError, match="sha256 is"):
        verify_package(package)
    card = json.loads((package / "model.json").read_text())
    card["sha256"] = hashlib.sha256((package / name).read_bytes()).hexdigest()
    (package / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"no safetensors file|cannot load it"):
        verify_package(package)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "the bomb is live"
