"""Measure seconds per step and per evaluation before training, for a budget in minutes or hours."""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.types import Phase, Recipe, Task, TrainState
from bljust_jax.checkpoint.manager import has_checkpoint
from bljust_jax.common import console, files
from bljust_jax.common.errors import UserError
from bljust_jax.data import train_sample
from bljust_jax.data.corpus import Corpus, Segment
from bljust_jax.data.utterances import hours
from bljust_jax.inference import scoring
from bljust_jax.monitoring.goodput import Clock
from bljust_jax.parallel.mesh import put_batch
from bljust_jax.train import budget
from bljust_jax.train.budget import Measured
from bljust_jax.train.run_programs import RunPrograms
from bljust_jax.train.system import build_recipe, make_system
from bljust_jax.train.timeline import Timeline

FIELD = "budget"  # of run.json
BATCHES = 4  # of each phase that are read
LEAST, MOST, ENOUGH = 3, 50, 3.0  # steps per phase that are timed, and seconds after which to end


def check(config: Any) -> None:
    """UserError for a budget in minutes or hours with several processes: each would measure other
    figures and train another schedule."""
    if budget.is_time(config) and jax.process_count() > 1:
        raise UserError(
            f"config.budget_unit={config.budget_unit} is for one process: with several, give"
            " config.budget in units of gradient, epoch or tflop"
        )


def find(
    config: Any,
    workdir: pathlib.Path,
    corpus: Corpus,
    facts: recipes.Facts,
    mesh: Mesh,
    clock: Clock,
) -> Measured | None:
    """What a budget in minutes or hours needs, None for others: the figures of WORKDIR/run.json if
    the run has a checkpoint, so that it keeps its schedule, else those of a trial.

    UserError if run.json of a run with a checkpoint is damaged.
    """
    if not budget.is_time(config):
        return None
    if has_checkpoint(workdir):
        stored = read(workdir)
        if stored and set(budget.steps_by_phase(config, facts)) <= set(stored.steps):
            return stored
    return measure(config, corpus, facts, mesh, clock)


def read(workdir: pathlib.Path) -> Measured | None:
    """The figures in WORKDIR/run.json; None for a run of another budget, as after
    --allow_config_change. UserError if the file is missing or damaged."""
    path = workdir / "run.json"
    try:
        facts = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds the seconds per step that the schedule of this run was made from, and"
            f" cannot be read: restore it, or name a new --workdir"
        ) from error
    return Measured(**facts[FIELD]) if facts.get(FIELD) else None


def measure(
    config: Any, corpus: Corpus, facts: recipes.Facts, mesh: Mesh, clock: Clock
) -> Measured:
    """Seconds per step of each phase, and per evaluation, on this machine.

    Steps with the batch shape that most steps of a phase have are timed on real batches, from the
    first step of the phase in the run as configured, with random weights; the mean over all shapes
    is in proportion to FLOPs. Compilation, reading of batches and saves are not counted.
    """
    console.log("config.budget is a time: measuring steps of each phase and an evaluation")
    recipe = build_recipe(config, facts)
    corpus.replay = recipe.replay
    system, timeline = make_system(config, recipe, mesh), Timeline(recipe)
    programs = RunPrograms(config, system, timeline, corpus, console.log, clock)
    firsts: dict[str, tuple[Phase, int]] = {}
    for segment, phase in zip(timeline.segments, recipe.phases, strict=True):
        firsts.setdefault(phase.name, (phase, segment.start))
    try:
        state = jax.device_put(
            step.compute_init_state(recipe, system.optimizer, config.seed), system.shardings
        )
        seconds = {}
        for name, (phase, first) in firsts.items():
            streams = programs.plan.streams[name]
            buckets = corpus.step_buckets(streams, _commonest(corpus, streams))
            state = state._replace(step=jax.device_put(jnp.int32(first), system.shardings.step))
            state, took = _time_steps(programs, corpus, mesh, state, name, buckets)
            mix = [(1.0, _shape(corpus, buckets))]
            own, mean = (
                _flops(config, given, recipe, phase)
                for given in (facts._replace(mix=lambda _, mix=mix: mix), facts)
            )
            seconds[name] = took * mean / own
        of_dev = _time_evaluation(programs, recipe, corpus, state)
    finally:
        programs.pool.close()
    dev, test, heard = (
        _hours(corpus, recipe, split) for split in ("dev", "test", train_sample.NAME)
    )
    evaluation = of_dev * (1 + heard / dev)
    last = evaluation + of_dev * (1 + 2 * test / dev)  # of averaged and of raw parameters
    return Measured("measured on this machine", seconds, evaluation, last)


def _commonest(corpus: Corpus, streams: tuple[str, ...]) -> int:
    """The bucket of most steps that read these streams."""
    counts = list(corpus.plans[corpus.driver(streams)].counts)
    return counts.index(max(counts))


def _shape(corpus: Corpus, buckets: dict[str, int]) -> dict[str, tuple[int, float]]:
    """{stream: (rows, seconds per row)} of a batch in these buckets."""
    tables = {s: corpus.plans[s].buckets[k] for s, k in buckets.items()}
    return {s: (bucket.batch_size, bucket.seconds) for s, bucket in tables.items()}


def _flops(config: Any, facts: recipes.Facts, recipe: Recipe, phase: Phase) -> float:
    """FLOPs of a mean step of a phase."""
    spent = recipes.step_compute(config, facts, recipe.objectives, phase.losses)
    return sum(each.flops for each in spent.values())


def _time_steps(
    programs: RunPrograms,
    corpus: Corpus,
    mesh: Mesh,
    state: TrainState,
    phase: str,
    buckets: dict[str, int],
) -> tuple[TrainState, float]:
    """(state, mean seconds per step) of steps of a phase in these buckets; the first is not
    timed."""
    programs.pool.wait(programs.steps.submit(programs.plan.find(phase, buckets)))
    batches = itertools.cycle(list(_batches(corpus, buckets)))
    began, done = 0.0, -1
    while done < LEAST or (done < MOST and time.monotonic() - began < ENOUGH):
        batch = put_batch(next(batches), mesh)
        state, means = programs.steps.run(int(state.step), phase, state, batch)
        jax.block_until_ready((state, means))
        done += 1
        if done == 0:
            began = time.monotonic()
    return state, (time.monotonic() - began) / done


def _batches(corpus: Corpus, buckets: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The first `BATCHES` batches in these buckets, of steps that read their streams."""
    streams = tuple(sorted(buckets))
    epoch = corpus.plans[corpus.driver(streams)].batches_per_epoch
    segments, shape = [Segment(0, BATCHES * epoch, streams)], _shape(corpus, buckets)
    batches = enumerate(corpus.train_batches(segments, 0))
    fitting = (batch for now, batch in batches if corpus.shape_at(segments, now) == shape)
    return itertools.islice(fitting, BATCHES)


def _time_evaluation(
    programs: RunPrograms, recipe: Recipe, corpus: Corpus, state: TrainState
) -> float:
    """Seconds to score dev once."""
    compiled = len(programs.pool.jobs)
    for task in recipe.tasks:
        if corpus.utterances(task.split("dev")):
            programs.decoders.submit(task, "dev")
    for job in programs.pool.jobs[compiled:]:
        programs.pool.wait(job)

    def decode(task: Task, batch: dict) -> Any:
        return programs.decoders.run(task, state.weights, batch)

    began = time.monotonic()
    scoring.score_tasks("dev", recipe.tasks, corpus, decode)
    return time.monotonic() - began


def _hours(corpus: Corpus, recipe: Recipe, split: str) -> float:
    return sum(hours(corpus.utterances(task.split(split))) for task in recipe.tasks)
