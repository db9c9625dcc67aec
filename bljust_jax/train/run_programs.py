"""All programs of a run, submitted for compilation in the order in which they are needed."""

from collections.abc import Callable
from typing import Any

from bljust_jax.data.corpus import Corpus
from bljust_jax.monitoring.goodput import Clock
from bljust_jax.train.compile_pool import CompilePool, Job
from bljust_jax.train.compiled_steps import CompiledDecoders, CompiledSteps
from bljust_jax.train.program_plan import ProgramPlan
from bljust_jax.train.system import System
from bljust_jax.train.timeline import Timeline


class RunPrograms:
    """`steps` and `decoders` of a run, compiled by the threads of `pool`."""

    def __init__(
        self,
        config: Any,
        system: System,
        timeline: Timeline,
        corpus: Corpus,
        log: Callable[[str], None],
        clock: Clock,
        shard: tuple[int, int] = (0, 1),
        check: Callable[[], None] = lambda: None,
    ):
        """`check`: see `CompilePool`."""
        self._config, self._tasks = config, system.recipe.tasks
        self._timeline, self._corpus = timeline, corpus
        self.pool = CompilePool(system.mesh, config.compile_threads, log, clock, check)
        self.plan = ProgramPlan(system.recipe, timeline, corpus)
        self.steps = CompiledSteps(config, system, corpus, self.plan, self.pool, shard)
        self.decoders = CompiledDecoders(system, corpus, self.pool, config.data.sample_rate)

    def submit(self, start: int) -> list[Job]:
        """Compile the programs that are needed from step `start` on.

        Returns those to wait for: the program of the largest batch of the first phase, so that one
        that does not fit is found before anything is trained, and that of the first batch.
        """
        needed, total = self.plan.first_steps(start), self._timeline.total
        opening = []
        if needed:
            largest = self.plan.largest(self._timeline.phase_at(start).name)
            opening = [p for p in (largest, next(iter(needed))) if p in needed]
        first = [self.steps.submit(program) for program in opening]
        every = self._config.eval_every
        evaluation = min((start // every + 1) * every, total)
        for program in (p for p, step in needed.items() if step < evaluation):
            self.steps.submit(program)
        self._submit_decoders("dev")
        for program in needed:
            self.steps.submit(program)
        self._submit_decoders("test")
        return first

    def _submit_decoders(self, split: str) -> None:
        for task in self._tasks:
            if self._corpus.utterances(task.split(split)):
                self.decoders.submit(task, split)
