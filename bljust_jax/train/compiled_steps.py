"""Compiled training steps and greedy decoders of a run, found by batch shape, compiled ahead."""

import functools
import time
from typing import Any

import jax

from bljust_jax.bilevel.types import Means, Task, TrainState, Tree, Weights
from bljust_jax.data.corpus import Corpus, empty_batch
from bljust_jax.inference import decode_split
from bljust_jax.parallel.mesh import batch_sharding, put_batch, put_full_batch, replicated
from bljust_jax.train.compile_pool import EVALUATION_CURE, CompilePool, Job
from bljust_jax.train.program_memory import report_out_of_memory
from bljust_jax.train.program_plan import ProgramPlan, StepProgram
from bljust_jax.train.system import System, jit_train_step, seed_of

CURE = "lower config.data.batch_seconds or set config.model.remat=full, config.accumulate=2"


class CompiledSteps:
    """The training programs of a run, each compiled by `pool` from the abstract state and batch.

    `shard` is (index, count) of this process among those that share the rows of a batch.
    """

    def __init__(
        self,
        config: Any,
        system: System,
        corpus: Corpus,
        plan: ProgramPlan,
        pool: CompilePool,
        shard: tuple[int, int] = (0, 1),
    ):
        self._mesh, self._state, self._read = system.mesh, system.state, plan.streams
        self._corpus, self._pool, self._shard = corpus, pool, shard
        self._seed = seed_of(config)
        self._jitted = {
            names: jit_train_step(config, system, phases) for names, phases in plan.groups.items()
        }
        self._jobs: dict[StepProgram, Job] = {}
        self._found: dict[tuple, StepProgram] = {}  # by phase and shapes of its streams
        self._blank: tuple[str, dict[tuple[str, int], Tree]] = ("", {})
        self._stalled = 0.0

    def __len__(self) -> int:
        """Number of compiled programs."""
        return sum(job.future.done() for job in self._jobs.values())

    def submit(self, program: StepProgram) -> Job:
        """Compile a program after those submitted before it."""
        if program in self._jobs:
            return self._jobs[program]
        batch = _abstract(self._corpus.empty_batches(dict(program.buckets)), self._mesh)
        jitted, name = self._jitted[program.phases], ", ".join(program.phases)
        lower = functools.partial(jitted.lower, self._state, batch, self._seed)
        job = Job(f"{name}: {_describe(batch)}", CURE, lower)
        for phase in program.phases:
            key = phase, _key({stream: batch[stream] for stream in self._read[phase]})
            self._found.setdefault(key, program)
        self._jobs[program] = job
        self._pool.submit(job)
        return job

    def run(self, now: int, phase: str, state: TrainState, batch: Tree) -> tuple[TrainState, Means]:
        """Step `now` of a phase on a batch of the streams that it reads; the state is donated."""
        self._pool.report()
        program = self._found[phase, _key(batch)]
        job = self._jobs[program]
        if not job.future.done():
            self._pool.log(
                f"step {now} waits for {self._pool.position(job)}{self._pool.expected()}"
            )
            began = time.monotonic()
            self._pool.wait(job)
            self._stalled += time.monotonic() - began
        with report_out_of_memory(job.name, CURE):
            return job.future.result()(state, self._complete(phase, program, batch), self._seed)

    def take_stall(self) -> float:
        """Seconds that steps have waited for programs since the last call."""
        seconds, self._stalled = self._stalled, 0.0
        return seconds

    def _complete(self, phase: str, program: StepProgram, batch: Tree) -> Tree:
        """The batch, with rows of length 0 in the streams that only other phases of the program
        read. They stay on the devices until another phase begins."""
        missing = [(s, k) for s, k in program.buckets if s not in batch]
        if self._blank[0] != phase:
            self._blank = (phase, {})
        made = self._blank[1]
        for stream, k in missing:
            if (stream, k) not in made:
                empty = self._corpus.empty_batches({stream: k}, shard=self._shard)
                made[stream, k] = put_batch(empty[stream], self._mesh)
        return batch | {stream: made[stream, k] for stream, k in missing}


class CompiledDecoders:
    """The greedy decoders of a recipe's tasks: (EMA weights, batch) -> `greedy_decoder`."""

    def __init__(self, system: System, corpus: Corpus, pool: CompilePool, sample_rate: int):
        self._mesh, self._weights = system.mesh, system.state.weights
        self._corpus, self._pool, self._rate = corpus, pool, sample_rate
        self._jitted = {
            task.name: jax.jit(
                decode_split.greedy_decoder(task), out_shardings=replicated(system.mesh)
            )
            for task in system.recipe.tasks
        }
        self._jobs: dict[tuple, Job] = {}

    def submit(self, task: Task, split: str) -> None:
        """Compile the decoder of a task for the batches of a split after the programs submitted
        before."""
        for bucket in self._corpus.eval_buckets(task.split(split)):
            labelled = bool(task.losses)
            empty = empty_batch(bucket, bucket.batch_size, self._rate, labelled=labelled)
            batch, jitted = _abstract(empty, self._mesh), self._jitted[task.name]
            key = task.name, _key(batch)
            if key not in self._jobs:
                rows, samples = empty["audio"].shape
                name = f"decoding{task.name and f' {task.name}'}: {rows} x {samples} samples"
                self._jobs[key] = Job(
                    name,
                    EVALUATION_CURE,
                    lambda jitted=jitted, batch=batch: jitted.lower(self._weights, batch),
                )
                self._pool.submit(self._jobs[key])

    def run(self, task: Task, weights: Weights, batch: Tree) -> Any:
        """Decode a batch of which each process has all rows."""
        batch = put_full_batch(batch, self._mesh)
        job = self._jobs.get((task.name, _key(batch)))
        program = self._jitted[task.name] if job is None else self._pool.wait(job)
        shardings = jax.tree.map(lambda x: x.sharding, self._weights)
        return program(jax.device_put(weights, shardings), batch)


def _abstract(batch: Tree, mesh: Any) -> Tree:
    """Shapes, types and sharding of a batch of all rows."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)


def _key(batch: Tree) -> tuple:
    """Structure of a batch, and the shapes of its arrays."""
    return jax.tree.structure(batch), tuple(x.shape for x in jax.tree.leaves(batch))


def _describe(batch: Tree) -> str:
    """labelled 8 x 64000, unlabelled 8 x 64000 samples."""
    shapes = {stream: rows["audio"].shape for stream, rows in sorted(batch.items())}
    sizes = (f"{stream} {rows} x {samples}" for stream, (rows, samples) in shapes.items())
    return f"{', '.join(sizes)} samples"
