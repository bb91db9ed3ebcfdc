"""Graphs of others: small ones written by hand, in every layout and with every kind of output that cards describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from model_samples import BANDS, card_fields
from onnx import TensorProto, helper
from scipy.special import expit, logit

from pipeline.errors import ModelError
from pipeline.models.card import Part
from pipeline.models.describe import describe, render
from pipeline.models.engines import open_segmenter
from pipeline.models.package import import_onnx, verify_package
from pipeline.models.prepare import prepare, random_patch

WEIGHT = np.random.default_rng(0).normal(0, 1, (4, 6)).astype(np.float32)
LAST = {"logits": "Identity", "probabilities": "Softmax", "sigmoid": "Sigmoid", "labels": "ArgMax"}


def graph(
    path: Path, layout: str = "NCHW", last: str = "logits", size: Any = 64, classes: int = 4, output: str = "same"
) -> Path:
    """Write a graph that mixes bands into classes pixel by pixel, ending in `last`."""
    nhwc = layout == "NHWC"
    shape = ["n", size, size, 6] if nhwc else ["n", 6, size, size]
    weight = helper.make_tensor("w", TensorProto.FLOAT, (classes, 6, 1, 1), WEIGHT[:classes].flatten())
    nodes = []
    inner = "image"
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2]))
        inner = "turned"
    nodes.append(helper.make_node("Conv", [inner, "w"], ["scores"]))
    options = {"probabilities": {"axis": 1}, "labels": {"axis": 1}}.get(last, {})
    nodes.append(helper.make_node(LAST[last], ["scores"], ["ended"], **options))
    back = nhwc if output == "same" else output == "NHWC"
    nodes.append(
        helper.make_node("Transpose", ["ended"], ["out"], perm=[0, 2, 3, 1])
        if back
        else helper.make_node("Identity", ["ended"], ["out"])
    )
    kind = TensorProto.INT64 if last == "labels" else TensorProto.FLOAT
    ends = (
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("out", kind, None),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
        ],
    )
    made = helper.make_graph(nodes, "mix", ends[0], ends[1], [weight])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def imported(folder: Path, file: Path, spec: dict[str, Any], **changes: Any) -> Path:
    """Import a graph with a card whose `graph` is `spec` and return the package."""
    fields = json.loads(json.dumps({**card_fields(Part(name="x")), "graph": spec, **changes}, default=lambda o: o.name))
    fields = {key: value for key, value in fields.items() if key not in ("backbone", "neck", "head")}
    (folder / "card.json").write_text(json.dumps(fields))
    import_onnx(file, folder / "card.json", folder / "package")
    return folder / "package"


def expected(package: Path, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A patch with holes, and the scores [1, classes, H, W] that the mixing gives it."""
    card = verify_package(package)
    patch = random_patch(card)
    patch[:, :, 3:9, 5] = np.nan
    return patch, np.einsum("ck,nkhw->nchw", WEIGHT[:classes].astype(float), prepare(patch, card).astype(float))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("output", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [64, "h"], ids=["fixed", "dynamic"])
def test_logits_in_every_layout(layout: str, output: str, size: Any, tmp_path: Path) -> None:
    file = graph(tmp_path / "m.onnx", layout, size=size, output=output)
    spec = {"layout": layout, "output_layout": output, "output_name": "out"}
    package = imported(tmp_path, file, spec)
    patch, scores = expected(package)
    np.testing.assert_allclose(open_segmenter(package, device="cpu").logits(patch), scores, atol=1e-4)


def test_probabilities_become_logits_that_say_the_same(tmp_path: Path) -> None:
    file = graph(tmp_path / "m.onnx", last="probabilities")
    package = imported(tmp_path, file, {"output": "probabilities", "output_name": "out"})
    patch, scores = expected(package)
    found = open_segmenter(package, device="cpu").logits(patch)
    shift = scores - scores.max(axis=1, keepdims=True)
    log_p = shift - np.log(np.exp(shift).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, np.maximum(log_p, np.log(1e-7)), atol=1e-3)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("last", ["logits", "sigmoid"])
def test_one_channel_is_the_second_of_two_classes(last: str, tmp_path: Path) -> None:
    file = graph(tmp_path / "m.onnx", last=last, classes=1)
    output = "logits" if last == "logits" else "probabilities"
    spec = {"output": output, "binary": True, "output_name": "out"}
    labels = card_fields(Part(name="x"))["labels"][:2]
    package = imported(tmp_path, file, spec, labels=labels)
    patch, scores = expected(package, classes=1)
    found = open_segmenter(package, device="cpu").logits(patch)
    assert found.shape == (1, 2, 64, 64)
    inside = np.abs(scores[0, 0]) < 12
    np.testing.assert_allclose((found[0, 1] - found[0, 0])[inside], logit(expit(scores[0, 0]))[inside], atol=2e-2)


def test_input_is_clipped_before_it_is_normalised(tmp_path: Path) -> None:
    scaling = {"mean": [0.0] * 6, "std": [0.3] * 6, "clip": [0.0, 0.3]}
    package = imported(tmp_path, graph(tmp_path / "m.onnx"), {"output_name": "out"}, scaling=scaling)
    card = verify_package(package)
    image = np.full((1, 6, 64, 64), 0.15, np.float32)
    image[0, :, 0, :4] = [-0.2, 0.9, 0.3, np.nan]
    np.testing.assert_allclose(prepare(image, card)[0, 0, 0, :5], [0, 1, 1, 0, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("made", "spec", "changes", "told"),
    [
        ({}, {}, {}, r"has the outputs \['out', 'scores'\]; set graph.output_name"),
        ({}, {"output_name": "nothing"}, {}, "set graph.output_name to one"),
        ({"layout": "NHWC"}, {"output_name": "out"}, {}, r"takes \['n', 64, 64, 6\].*graph.layout"),
        ({"size": 96}, {"output_name": "out"}, {}, r"takes \['n', 6, 96, 96\].*correct patch.size"),
        ({"last": "labels"}, {"output_name": "out"}, {}, "returns int64 .*scores of every class"),
        ({"last": "probabilities"}, {"output_name": "out"}, {}, "set graph.output: probabilities"),
        ({}, {"output_name": "out", "output": "probabilities"}, {}, "set graph.output: logits"),
        ({"classes": 3}, {"output_name": "out"}, {}, "its card promises"),
        ({"output": "NHWC"}, {"output_name": "out"}, {}, "its card promises"),
        ({}, {"output_name": "out", "layout": "CHW"}, {}, "graph.layout"),
        ({}, {"output_name": "out"}, {"bands": BANDS[:5]}, "5 bands"),
    ],
)
def test_cards_that_do_not_fit_the_graph_are_refused(
    made: dict[str, Any], spec: dict[str, Any], changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    file = graph(tmp_path / "m.onnx", **made)
    with pytest.raises(ModelError, match=told):
        imported(tmp_path, file, spec, **changes)
    assert not (tmp_path / "package").exists()


def test_a_graph_is_described(tmp_path: Path) -> None:
    package = imported(tmp_path, graph(tmp_path / "m.onnx"), {"output_name": "out"})
    found = describe(package)
    assert (found.parameters, found.gflop_per_megapixel, found.reach_local) == (24, None, None)
    assert "not measured for ONNX" in render(found)
