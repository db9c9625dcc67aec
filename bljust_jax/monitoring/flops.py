"""Compute counters of a run: encoder FLOPs (forward 1, backward 2), padded audio, loss updates."""

from typing import Any

from bljust_jax.bilevel.types import Phase, Recipe

FRESH = {"flops": 0.0, "audio_hours": 0.0}


def count(
    totals: dict[str, Any], recipe: Recipe, phase: Phase, shapes: dict[str, tuple[int, float]]
) -> None:
    """Add one step to `totals`; shapes: {stream: (rows, seconds per row)}."""
    audio = 0.0
    for objective in recipe.active(phase):
        wanted = phase.losses & set(objective.losses)
        rows, seconds = shapes[objective.streams[0]]
        totals["flops"] += rows * recipe.cost(wanted, seconds)
        audio += rows * seconds
        for loss in sorted(wanted):
            totals[f"updates/{loss}"] = totals.get(f"updates/{loss}", 0) + 1
    totals["audio_hours"] += audio / 3600


def named(totals: dict[str, Any]) -> dict[str, Any]:
    """The totals under their metric names, compute/*."""
    named = {f"compute/{k}": v for k, v in totals.items() if k != "flops"}
    return {"compute/encoder_tflop": totals["flops"] / 1e12, **named}
