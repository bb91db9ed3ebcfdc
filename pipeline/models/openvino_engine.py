"""ONNX graphs on OpenVINO: in float32, and in half precision on CPUs that compute it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.graph_engine import GraphEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.card import ModelCard
    from pipeline.models.engines import Precision

_HINTS = {"auto": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoEngine(GraphEngine):
    """A graph on OpenVINO's CPU plugin.

    `auto` is float32, whatever the processor: OpenVINO by itself would take bfloat16 where there is hardware for it.
    """

    def __init__(
        self, card: ModelCard, graph: bytes, where: str, threads: int = 1, precision: Precision = "auto"
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ModelError(
                f"model {where}: the engine openvino is not installed; pip install 'clearcause[openvino]'"
            ) from error
        super().__init__(card, where)
        core = openvino.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision in ("bf16", "fp16") and precision.upper() not in able:
            raise ModelError(f"compute.precision {precision}: this processor does not compute it; set precision: auto")
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # several processes would all be pinned to the first cores
            "ENABLE_CPU_PINNING": False,
        }
        try:
            # from bytes: a graph with external data could name any file of this machine
            model = core.read_model(graph, b"")
            inputs = [(one.any_name, one.element_type.to_string(), _sides(one.partial_shape)) for one in model.inputs]
            names = [one.any_name for one in model.outputs]
            self._check_ends([(name, _KINDS.get(kind, kind), shape) for name, kind, shape in inputs], names)
            model.reshape({0: [1, *inputs[0][2][1:]]})
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise ModelError(f"model {where}: OpenVINO cannot load it: {told}") from error
        self._output = compiled.output(self._spec.output_name or names[0])
        self._request = compiled.create_infer_request()

    def _answer(self, one: NDArray[np.float32]) -> Any:
        try:
            # a copy: the next patch is written over it
            return np.array(self._request.infer({0: one}, share_inputs=True)[self._output])
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise ModelError(f"model {self._where}: the graph fails on a patch of the card: {told}") from error


def _sides(shape: Any) -> list[object]:
    """Sides of a shape, numbers where they are fixed."""
    return [side.get_length() if side.is_static else str(side) for side in shape]


_KINDS = {"f32": "float32"}
