"""A judgement as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.training.intervals import Figure
    from pipeline.training.results import Judgement


def judgement_text(result: Judgement) -> str:
    """Return the figures of a result with 95 % intervals, the confusion matrix and what could not be judged."""
    about = result.about
    lines = [f"{about.model} on {about.split}" + ("  [simulated data]" if about.simulated else "")]
    lines.append(f"{result.judged} of {result.events} events judged")
    lines += [f"accuracy    {_figure(result.accuracy)}", f"macro-F1    {_figure(result.macro_f1)}"]
    lines.append(f"calibration error {result.ece:.3f}, log-loss {result.log_loss:.3f}")
    width = max(len(name) for name in about.classes)
    lines.append(f"{'':<{width}}  {'precision':<22}{'recall':<22}{'F1':<22}")
    for one in result.per_class:
        lines.append(f"{one.name:<{width}}  {_figure(one.precision):<22}{_figure(one.recall):<22}{_figure(one.f1):<22}")
    lines.append("confusion (rows: reference, columns: predicted)")
    lines += [
        f"{name:<{width}}  " + "".join(f"{count:>7}" for count in row)
        for name, row in zip(about.classes, result.confusion, strict=True)
    ]
    reasons: dict[str, int] = {}
    for item in result.invalid:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    lines += [f"not judged: {count} ({reason})" for reason, count in sorted(reasons.items())]
    return "\n".join(lines)


def _figure(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
