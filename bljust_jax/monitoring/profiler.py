"""Profile training steps (`--profile_steps=A:B`) with jax.profiler, for TensorBoard and Perfetto.

Steps A to B - 1 are recorded, on host and devices, in WORKDIR/profile.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator

from bljust_jax.common.errors import UserError

STEP = "train_step"  # annotation of each step, with its number


def parse(flag: str) -> range:
    """range(A, B) of "A:B", an empty range of ""; UserError for anything else."""
    if not flag:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", flag)
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if not steps:
        raise UserError(
            f"--profile_steps={flag} must be A:B, the first step and the one after the last, as "
            "in --profile_steps=20:25"
        )
    return steps


class Tracer:
    """Records a range of steps; the first process does it for all."""

    def __init__(self, steps: range, workdir: pathlib.Path, total: int):
        """UserError for steps beyond the `total` of a run."""
        if steps and steps.stop > total:
            raise UserError(
                f"--profile_steps={steps.start}:{steps.stop} is beyond the run's {total} steps"
            )
        self._steps, self._folder, self._tracing = steps, workdir / "profile", False

    @contextlib.contextmanager
    def step(self, now: int) -> Iterator[None]:
        """The context of step `now`."""
        import jax

        if now not in self._steps or jax.process_index() > 0:
            yield
            return
        if not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=now):
            yield
        if now + 1 == self._steps.stop:
            jax.block_until_ready(jax.live_arrays())  # the results of the last step among them
            self.close()

    def close(self) -> None:
        import jax

        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
