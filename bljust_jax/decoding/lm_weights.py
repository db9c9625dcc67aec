"""Tune language-model weights (alpha, beta) by coordinate search on WER."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
BETAS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


class Trial(NamedTuple):
    alpha: float
    beta: float
    wer: float
    cer: float


def tune(
    try_out: Callable[[float, float], Trial], start: tuple[float, float]
) -> tuple[Trial, list[Trial]]:
    """(best trial, all trials) of a coordinate search over ALPHAS and BETAS from `start`.

    Varies one weight with the other fixed, in turn, until neither improves WER (CER at equal WER).
    """
    tried: dict[tuple[float, float], Trial] = {}

    def best_of(points: Sequence[tuple[float, float]]) -> Trial:
        for point in points:
            if point not in tried:
                tried[point] = try_out(*point)
        return min((tried[point] for point in points), key=lambda t: (t.wer, t.cer))

    best = best_of([start])
    while True:
        before = best
        best = best_of([before[:2], *((alpha, before.beta) for alpha in ALPHAS)])
        best = best_of([best[:2], *((best.alpha, beta) for beta in BETAS)])
        if best == before:
            return best, list(tried.values())
