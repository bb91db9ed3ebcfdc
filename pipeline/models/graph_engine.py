"""What engines that run an ONNX graph share: our own exports, and graphs of others as their card describes them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
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


class GraphEngine(abc.ABC):
    """An ONNX graph on the CPU, from bytes whose digest the caller has checked; patches go through one by one."""

    def __init__(self, card: ModelCard, where: str) -> None:
        """Keep what a graph of `card` must look like; `where` is named in errors."""
        self.card = card
        self._where = where
        self._spec = card.graph or GraphSpec()

    @abc.abstractmethod
    def _answer(self, one: NDArray[np.float32]) -> Any:
        """Run the graph on one input in its own layout.

        Raises:
            ModelError: the graph fails.
        """

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 reflectance [N, bands, H, W], NaN = not observed -> float32 logits [N, classes, H, W]."""
        inputs = prepare(images, self.card)
        answers = [self._to_logits(self._run(inputs[index : index + 1])) for index in range(len(inputs))]
        return joined(answers, images, self.card)

    def raw(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reflectance [N, bands, H, W] -> what the graph says, float32 [N, channels, H, W], before any logarithm."""
        inputs = prepare(images, self.card)
        return np.concatenate([self._run(inputs[index : index + 1]) for index in range(len(inputs))])

    def _check_ends(self, inputs: Sequence[tuple[str, str, Sequence[object]]], names: Sequence[str]) -> None:
        """Raise ModelError where inputs (name, type, shape) and names of outputs cannot be those of the card."""
        if len(inputs) != 1 or inputs[0][1] != "float32":
            told = ", ".join(f"{name} {kind}" for name, kind, _ in inputs)
            raise ModelError(f"model {self._where}: the graph must take one float32 image, it takes {told}")
        if (self._spec.output_name or (names[0] if len(names) == 1 else None)) not in names:
            raise ModelError(f"model {self._where}: the graph has the outputs {names}; set graph.output_name to one")
        wanted: list[int | None] = [None, len(self.card.bands), self.card.patch.size, self.card.patch.size]
        if self._spec.layout == "NHWC":
            wanted = [wanted[0], wanted[2], wanted[3], wanted[1]]
        given = list(inputs[0][2])
        if len(given) != 4 or any(
            isinstance(one, int) and one != (1 if own is None else own) for one, own in zip(given, wanted, strict=True)
        ):
            raise ModelError(
                f"model {self._where}: the graph takes {given}, but the card says {['n', *wanted[1:]]} "
                f"({self._spec.layout}): correct patch.size, bands or graph.layout of the card"
            )

    def _run(self, one: NDArray[np.float32]) -> NDArray[np.float32]:
        """One prepared patch [1, bands, H, W] -> the graph's float32 [1, channels, H, W]."""
        if self._spec.layout == "NHWC":
            one = np.ascontiguousarray(one.transpose(0, 2, 3, 1))
        answer = self._answer(one)
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
