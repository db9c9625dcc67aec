"""Compute counters of a run: FLOPs (forward 1, backward 2), padded audio, loss updates."""

from typing import Any

from bljust_jax.bilevel.types import Phase, Recipe

# flops: of the encoder; head_flops: of heads, decoders and quantisers
FRESH = {"flops": 0.0, "head_flops": 0.0, "audio_hours": 0.0}


def count(
    totals: dict[str, Any], recipe: Recipe, phase: Phase, shapes: dict[str, tuple[int, float]]
) -> None:
    """Add one step to `totals`; shapes: {stream: (rows, seconds per row)}."""
    audio = 0.0
    for objective in recipe.active(phase):
        wanted = phase.losses & set(objective.losses)
        rows, seconds = shapes[objective.streams[0]]
        totals["flops"] += rows * recipe.cost(wanted, seconds)
        totals.setdefault("head_flops", 0.0)  # absent from checkpoints before the field
        totals["head_flops"] += rows * recipe.head_cost(wanted, seconds)
        audio += rows * seconds
        for loss in sorted(wanted):
            totals[f"updates/{loss}"] = totals.get(f"updates/{loss}", 0) + 1
    totals["audio_hours"] += audio / 3600


def named(totals: dict[str, Any]) -> dict[str, Any]:
    """The totals under their metric names, compute/*: `encoder_tflop` of the encoder, `tflop` of
    all."""
    named = {f"compute/{k}": v for k, v in totals.items() if "flops" not in k}
    encoder, heads = totals["flops"], totals.get("head_flops", 0.0)
    named |= {"compute/encoder_tflop": encoder / 1e12, "compute/tflop": (encoder + heads) / 1e12}
    return named
