"""Everything before the first step: data, recipe, mesh, restored state and compiled steps."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bljust_jax import recipes
from bljust_jax.bilevel.types import Recipe, TrainState, Tree, Weights
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Corpus, load_corpus
from bljust_jax.inference import decode_split, scoring
from bljust_jax.monitoring import flops, goodput, metrics, peak_flops, profiler
from bljust_jax.monitoring.codebook_collapse import CollapseAlarm
from bljust_jax.monitoring.progress import Progress
from bljust_jax.monitoring.trackers import MetricWriter
from bljust_jax.parallel import preemption
from bljust_jax.parallel.compile_cache import enable_compile_cache
from bljust_jax.parallel.mesh import (
    batch_devices,
    make_mesh,
    put_batch,
    put_full_batch,
    replicated,
)
from bljust_jax.train import initial_state
from bljust_jax.train.compiled_steps import CompiledSteps
from bljust_jax.train.metric_log import MetricLog
from bljust_jax.train.run_meta import RunMeta
from bljust_jax.train.save_timer import SaveTimer
from bljust_jax.train.system import System, build_recipe, jit_train_step, make_system
from bljust_jax.train.timeline import Timeline
from bljust_jax.train.workdir import (
    check_config,
    check_data,
    saved_tokenizers,
    write_config,
    write_facts,
)


class RunOptions(NamedTuple):
    """Command-line options of a training run besides config and workdir."""

    began: float | None = None  # start of the command by `time.monotonic`; None: now
    profile_steps: range = range(0)  # steps to profile
    allow_config_change: bool = False  # resume with another config or other data


@dataclass
class TrainingRun:
    """All that the training loop works with."""

    config: Any
    workdir: pathlib.Path
    system: System
    corpus: Corpus
    timeline: Timeline
    restored: int | None  # step of the checkpoint that was restored; None for a new run
    state: TrainState
    best: Weights  # those of the best dev score
    meta: RunMeta
    clock: goodput.Clock
    progress: Progress
    log: MetricLog
    tracer: profiler.Tracer
    checkpoints: Checkpoints
    save_timer: SaveTimer
    stop_requested: Callable[[int], bool]  # before a step: whether to save and stop (SIGTERM)
    batches: Iterator[Tree]  # from the first step on
    steps: CompiledSteps
    init_optimizer: Callable[[Tree], Tree]  # params -> a fresh optimizer state
    evaluate: Callable[[str, Weights], scoring.Scored]  # of a split, by greedy decoding

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the files of the workdir."""
        return jax.process_index() == 0

    def reset_moments(self) -> None:
        """Replace the optimizer state by a fresh one."""
        self.state = self.state._replace(opt_state=self.init_optimizer(self.state.params))


def prepare(
    config: Any, workdir: pathlib.Path, options: RunOptions, stack: contextlib.ExitStack
) -> TrainingRun:
    """Build the run of `config` in `workdir`, restore its newest checkpoint if there is one, write
    config.json and run.json, log what will run, and compile the largest batch of each phase.

    What must be closed at the end of the run is pushed on `stack`. UserError for any mistake in
    config, data or workdir.
    """
    clock = goodput.Clock(options.began)
    check_config(config, workdir, options.allow_config_change)
    enable_compile_cache(config.compile_cache)
    stop_requested = preemption.watch_for_sigterm(stack)
    mesh = make_mesh(**config.mesh)
    stack.enter_context(jax.set_mesh(mesh))  # kernels split their batch by it
    corpus = load_data(config, workdir, mesh)
    recipe = build_recipe(config, corpus_facts(corpus))
    system = make_system(config, recipe, mesh)
    timeline = Timeline(recipe)
    tracer = profiler.Tracer(options.profile_steps, workdir, timeline.total)
    stack.callback(tracer.close)

    policy = {name: config[name] for name in ("keep", "keep_every", "on_full_disk")}
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, **policy)))
    restored, state, best, meta, origin = restore_or_initialise(
        config, workdir, options, system, corpus, checkpoints
    )
    first = jax.process_index() == 0
    if first:
        write_config(config, workdir, corpus.tokenizers)
        write_facts(config, workdir, recipe, timeline, mesh)
        stack.callback(corpus.quarantined.write, workdir / "quarantine.jsonl")
    writer = stack.enter_context(contextlib.closing(MetricWriter(workdir, restored, active=first)))
    if restored is not None:
        clock.resume(meta.seconds, writer.dropped)
    progress = make_progress(config, system, timeline, int(state.step), meta, clock)
    for line in [f"workdir: {workdir}", *describe(system, corpus), *origin]:
        progress.log(line)
    return TrainingRun(
        config=config,
        workdir=workdir,
        system=system,
        corpus=corpus,
        timeline=timeline,
        restored=restored,
        state=state,
        best=best,
        meta=meta,
        clock=clock,
        progress=progress,
        log=make_metric_log(config, workdir, meta, corpus, timeline, writer, progress, clock),
        tracer=tracer,
        checkpoints=checkpoints,
        stop_requested=stop_requested,
        steps=compile_steps(config, system, corpus, timeline, state, progress.log, clock),
        batches=corpus.train_batches(timeline.segments, int(state.step), shard=shard()),
        init_optimizer=jax.jit(system.optimizer.init, out_shardings=system.shardings.opt_state),
        evaluate=make_evaluator(recipe, corpus, mesh),
        save_timer=SaveTimer(config.save_minutes, config.log_every),
    )


def shard() -> tuple[int, int]:
    """(index, count) of this process's rows of a batch."""
    return jax.process_index(), jax.process_count()


# Data and state


def load_data(config: Any, workdir: pathlib.Path, mesh: Mesh) -> Corpus:
    """The corpus of `config.data`, with the tokenizers of the run to resume if there is one."""
    tokenizers = saved_tokenizers(config, workdir)
    rows = batch_devices(mesh) * config.accumulate
    return load_corpus(config.data, seed=config.seed, multiple=rows, tokenizers=tokenizers)


def corpus_facts(corpus: Corpus) -> recipes.Facts:
    """Vocabulary sizes and steps per epoch, by stream."""
    return recipes.Facts(
        vocab_sizes={name: units.vocab_size for name, units in corpus.tokenizers.items()},
        steps_per_epoch={name: plan.batches_per_epoch for name, plan in corpus.plans.items()},
    )


def restore_or_initialise(
    config: Any,
    workdir: pathlib.Path,
    options: RunOptions,
    system: System,
    corpus: Corpus,
    checkpoints: Checkpoints,
) -> tuple[int | None, TrainState, Weights, RunMeta, list[str]]:
    """(step of the restored checkpoint or None, state, best weights, metadata, lines on where the
    state comes from): the newest valid checkpoint, else a fresh state."""
    found = checkpoints.restore_newest(system.state)
    if found is not None:
        meta = RunMeta.from_json(found.meta)
        check_data(meta, corpus, workdir, options.allow_config_change)
        return found.step, found.state, found.best, meta, [f"resumed from step {found.step}"]
    state, origin = initial_state.make_state(config, system.recipe, system.optimizer, corpus)
    state = jax.device_put(state, system.shardings)
    best = jax.tree.map(jnp.copy, state.weights)
    return None, state, best, RunMeta(corpus.digest()), origin


def describe(system: System, corpus: Corpus) -> list[str]:
    """Lines on the data, the number of parameters per group, and the phases."""
    recipe = system.recipe
    recognised = [task.stream for task in recipe.tasks if task.predict]
    counts = {g.name: 0 for g in recipe.groups}
    leaves = (jax.tree.leaves(tree) for tree in (system.groups, system.state.params))
    for group, leaf in zip(*leaves, strict=True):
        counts[group.name] += leaf.size
    return [
        *corpus.summary(),
        *corpus.infeasible(recipe.frames, recognised),
        "parameters: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()),
        *(f"phase {name}: {n} steps of {levels}" for name, n, levels in recipe.phase_table),
    ]


# What the loop calls


def make_progress(
    config: Any, system: System, timeline: Timeline, start: int, meta: RunMeta, clock: goodput.Clock
) -> Progress:
    """The progress report from step `start` on; only the first process prints it."""
    kinds = [device.device_kind for device in system.mesh.devices.flat]
    peak, computed = peak_flops.flops(kinds, config.model.dtype), flops.named(meta.compute)
    active = jax.process_index() == 0
    return Progress(timeline.total, start, clock, computed, peak, active=active)


def compile_steps(
    config: Any,
    system: System,
    corpus: Corpus,
    timeline: Timeline,
    state: TrainState,
    log: Callable[[str], None],
    clock: goodput.Clock,
) -> CompiledSteps:
    """The steps of all phases; those of the largest batch of each phase to come are compiled, so
    that a batch that does not fit is found before anything is trained."""
    phases = timeline.streams_from(0).values()
    expected = sum(len(corpus.buckets_in_use(streams)) for streams in phases)
    jitted = {p.name: jit_train_step(config, system, p) for p in system.recipe.phases}
    steps = CompiledSteps(jitted, expected, log, clock)
    for name, streams in timeline.streams_from(int(state.step)).items():
        largest = corpus.buckets_in_use(streams)[-1]
        batch = corpus.empty_batches(streams, largest, shard=shard())
        steps.compile(name, state, put_batch(batch, system.mesh))
    return steps


def make_evaluator(
    recipe: Recipe, corpus: Corpus, mesh: Mesh
) -> Callable[[str, Weights], scoring.Scored]:
    """evaluate(split, weights): the scores of all tasks by greedy decoding. Every process decodes
    the whole split."""
    decode = {
        task.name: jax.jit(decode_split.greedy_decoder(task), out_shardings=replicated(mesh))
        for task in recipe.tasks
    }

    def evaluate(split: str, weights: Weights) -> scoring.Scored:
        return scoring.score_tasks(
            split,
            recipe.tasks,
            corpus,
            lambda task, batch: decode[task.name](weights, put_full_batch(batch, mesh)),
        )

    return evaluate


def make_metric_log(
    config: Any,
    workdir: pathlib.Path,
    meta: RunMeta,
    corpus: Corpus,
    timeline: Timeline,
    writer: MetricWriter,
    progress: Progress,
    clock: goodput.Clock,
) -> MetricLog:
    """The metric log, with the open window of the checkpoint."""

    def check(window: metrics.Window) -> None:
        check_finite(window, config.max_skipped, workdir, corpus, timeline)

    window = metrics.Window(meta.window, meta.skipped)
    return MetricLog(window, writer, progress, clock, CollapseAlarm(**config.collapse), check)


def check_finite(
    window: metrics.Window, limit: int, workdir: pathlib.Path, corpus: Corpus, timeline: Timeline
) -> None:
    """UserError when `limit` consecutive steps were skipped as not finite; their utterances are
    listed in not_finite.json."""
    if window.longest_skip < limit:
        return
    last = window.last_skipped
    steps = range(last - window.longest_skip + 1, last + 1)
    read = {now: corpus.utterances_at(timeline.segments, now) for now in steps if now >= 0}
    path = workdir / "not_finite.json"
    if jax.process_index() == 0:
        path.write_text(json.dumps(read, ensure_ascii=False, indent=2) + "\n")
    raise UserError(
        f"{len(steps)} steps in a row were not finite, {steps[0]} to {last}; the last one read "
        f"{', '.join(read[last][:3])}, ... (all in {path}): lower config.lr, or look for broken "
        "audio"
    )
