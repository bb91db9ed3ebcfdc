"""ONNX graphs on ONNX Runtime: our own exports, and graphs of others as their card describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.card import GraphSpec
from pipeline.models.prepare import joined, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.card import ModelCard

FLOOR = 1e-7
"""Probabilities below it count as this: a logarithm of 0 would decide a whole event by one pixel."""
SLACK = 1e-3
"""How far the sum of a pixel's probabilities may be from 1."""


class OnnxEngine:
    """An ONNX graph on ONNX Runtime's CPU provider, from bytes whose digest the caller has checked."""

    def __init__(self, card: ModelCard, graph: bytes, where: str, threads: int = 1) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as native

        self.card = card
        self._where = where
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
        self._spec = card.graph or GraphSpec()
        self._input, self._output = self._ends()

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 reflectance [N, bands, H, W], NaN = not observed -> float32 logits [N, classes, H, W]."""
        inputs = prepare(images, self.card)
        answers = [self._to_logits(self._run(inputs[index : index + 1])) for index in range(len(inputs))]
        return joined(answers, images, self.card)

    def raw(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reflectance [N, bands, H, W] -> what the graph says, float32 [N, channels, H, W], before any logarithm."""
        inputs = prepare(images, self.card)
        return np.concatenate([self._run(inputs[index : index + 1]) for index in range(len(inputs))])

    def _ends(self) -> tuple[str, str]:
        """Names of the input and the output; raises ModelError where they cannot be those of the card."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            told = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise ModelError(f"model {self._where}: the graph must take one float32 image, it takes {told}")
        names = [one.name for one in outputs]
        if (self._spec.output_name or (names[0] if len(names) == 1 else None)) not in names:
            raise ModelError(f"model {self._where}: the graph has the outputs {names}; set graph.output_name to one")
        wanted: list[int | None] = [None, len(self.card.bands), self.card.patch.size, self.card.patch.size]
        if self._spec.layout == "NHWC":
            wanted = [wanted[0], wanted[2], wanted[3], wanted[1]]
        given = inputs[0].shape
        if len(given) != 4 or any(
            isinstance(one, int) and one != (1 if own is None else own) for one, own in zip(given, wanted, strict=True)
        ):
            raise ModelError(
                f"model {self._where}: the graph takes {given}, but the card says {['n', *wanted[1:]]} "
                f"({self._spec.layout}): correct patch.size, bands or graph.layout of the card"
            )
        return inputs[0].name, self._spec.output_name or names[0]

    def _run(self, one: NDArray[np.float32]) -> NDArray[np.float32]:
        """One prepared patch [1, bands, H, W] -> the graph's float32 [1, channels, H, W]."""
        if self._spec.layout == "NHWC":
            one = np.ascontiguousarray(one.transpose(0, 2, 3, 1))
        try:
            answer: Any = self._session.run([self._output], {self._input: one})[0]
        except self._failures as error:
            raise ModelError(f"model {self._where}: the graph fails on a patch of the card: {error}") from error
        if not isinstance(answer, np.ndarray) or answer.ndim != 4 or answer.dtype.kind != "f":
            told = f"{answer.dtype} {list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
            raise ModelError(
                f"model {self._where}: the graph returns {told}; scores of every class and pixel are needed"
            )
        if (self._spec.output_layout or self._spec.layout) == "NHWC":
            answer = answer.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(answer, np.float32)

    def _to_logits(self, answer: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._spec.binary and answer.shape[1] != 1:
            raise ModelError(
                f"model {self._where}: graph.binary means one channel, the graph returns {answer.shape[1]}"
            )
        if self._spec.output == "logits":
            # softmax over (0, z) gives the second class the sigmoid of z
            return np.concatenate([np.zeros_like(answer), answer], axis=1) if self._spec.binary else answer
        p = np.concatenate([1 - answer, answer], axis=1) if self._spec.binary else answer
        if not p.min() >= -SLACK or not np.abs(p.sum(axis=1) - 1).max() <= SLACK:
            raise ModelError(
                f"model {self._where}: the card says probabilities, but the graph's outputs are not (lowest "
                f"{p.min():g}, sums up to {p.sum(axis=1).max():g}); set graph.output: logits"
            )
        return np.asarray(np.log(np.maximum(p, FLOOR)), np.float32)


def looks_like_probabilities(answer: NDArray[np.float32]) -> bool:
    """Whether a graph's raw answer [N, channels, H, W] is probabilities: logits do not sum to 1 by chance."""
    if answer.shape[1] == 1:
        return bool(answer.min() >= 0 and answer.max() <= 1)
    return bool(answer.min() >= 0 and np.abs(answer.sum(axis=1) - 1).max() <= SLACK)
