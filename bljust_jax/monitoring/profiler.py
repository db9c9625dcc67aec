"""`--profile_steps=A:B`: what the host and the devices do from step A up to, not with, step B, as
`jax.profiler` records it for TensorBoard and Perfetto, in WORKDIR/profile."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

from bljust_jax.common.errors import UserError

STEP = "train_step"  # the annotation of each step, with its number


def parse(given: str) -> range:
    """range(A, B) of "A:B", no step of ""; UserError for anything else."""
    if not given:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", given)
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if not steps:
        raise UserError(
            f"--profile_steps={given} must be A:B, the first step and the one after the last, as "
            "in --profile_steps=20:25"
        )
    return steps


class Tracer:
    """Records the steps that are asked for; the first process does it for all."""

    def __init__(self, steps: range, workdir: pathlib.Path, total: int):
        """UserError for steps beyond the `total` of a run."""
        if steps and steps.stop > total:
            raise UserError(
                f"--profile_steps={steps.start}:{steps.stop} is beyond the run's {total} steps"
            )
        self._steps, self._folder, self._tracing = steps, workdir / "profile", False

    def step(self, now: int, take: Callable[..., Any], *args: Any) -> Any:
        """take(*args), which is step `now`."""
        import jax

        if now not in self._steps or jax.process_index() > 0:
            return take(*args)
        if not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=now):
            taken = take(*args)
        if now + 1 == self._steps.stop:
            jax.block_until_ready(taken)
            self.close()
        return taken

    def close(self) -> None:
        import jax

        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
