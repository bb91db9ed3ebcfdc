"""ONNX graphs on ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.graph_engine import GraphEngine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.card import ModelCard


class OnnxEngine(GraphEngine):
    """A graph on ONNX Runtime's CPU provider, in float32."""

    def __init__(self, card: ModelCard, graph: bytes, where: str, threads: int = 1) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as native

        super().__init__(card, where)
        # ONNX Runtime's errors share no root but Exception
        self._failures: tuple[type[Exception], ...] = tuple(
            value for value in vars(native).values() if isinstance(value, type) and issubclass(value, Exception)
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            # from bytes: a graph with external data could name any file of this machine
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except self._failures as error:
            raise ModelError(f"model {where}: ONNX Runtime cannot load it: {error}") from error
        inputs = [(one.name, _KINDS.get(one.type, one.type), one.shape) for one in self._session.get_inputs()]
        names = [one.name for one in self._session.get_outputs()]
        self._check_ends(inputs, names)
        self._input, self._output = inputs[0][0], self._spec.output_name or names[0]

    def _answer(self, one: NDArray[np.float32]) -> Any:
        try:
            return self._session.run([self._output], {self._input: one})[0]
        except self._failures as error:
            raise ModelError(f"model {self._where}: the graph fails on a patch of the card: {error}") from error


_KINDS = {"tensor(float)": "float32"}
