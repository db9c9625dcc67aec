"""Everything before the first step: data, recipe, mesh, restored state and compiled steps."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bljust_jax import recipes
from bljust_jax.bilevel.types import Phase, Recipe, Task, Weights
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common import console
from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import UserError
from bljust_jax.common.files import write_text
from bljust_jax.data import config_checks, train_sample
from bljust_jax.data.corpus import Corpus, load_corpus
from bljust_jax.data.utterances import hours
from bljust_jax.inference import scoring
from bljust_jax.monitoring import flops, goodput, metrics, peak_flops, profiler
from bljust_jax.monitoring.codebook_collapse import CollapseAlarm
from bljust_jax.monitoring.progress import Progress
from bljust_jax.monitoring.starved_objective import StarvationAlarm
from bljust_jax.monitoring.trackers import MetricWriter
from bljust_jax.parallel import preemption
from bljust_jax.parallel.compile_cache import enable_compile_cache
from bljust_jax.parallel.mesh import batch_devices, make_mesh
from bljust_jax.train import budget, budget_trial, initial_state, phase_table, run_lock
from bljust_jax.train.dev_losses import DevLosses
from bljust_jax.train.metric_log import MetricLog
from bljust_jax.train.run_meta import RunMeta
from bljust_jax.train.run_programs import RunPrograms
from bljust_jax.train.save_timer import SaveTimer
from bljust_jax.train.system import System, build_recipe, make_system
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


class TrainingRun:
    """All that the training loop works with.

    Building it restores the newest checkpoint if there is one, writes config.json and run.json,
    logs what will run, and begins to compile its programs.
    """

    def __init__(
        self,
        config: Any,
        workdir: pathlib.Path,
        options: RunOptions,
        stack: contextlib.ExitStack,
    ):
        """What must be closed at the end of the run is pushed on `stack`. UserError for any mistake
        in config, data or workdir."""
        self.config, self.workdir = config, workdir
        self.clock = goodput.Clock(options.began)
        config_checks.check(config)
        self.is_main = jax.process_index() == 0  # the process that writes the files of the workdir
        if self.is_main:
            run_lock.check(workdir)
        check_config(config, workdir, options.allow_config_change)
        enable_compile_cache(config.compile_cache)
        self.stop = preemption.StopSignals(stack)
        self.shard = (jax.process_index(), jax.process_count())
        mesh = make_mesh(**config.mesh)
        stack.enter_context(jax.set_mesh(mesh))  # kernels split their batch by it
        facts, given = self._read_data(mesh), config
        measured, scaled = self._scale(facts, mesh)
        config = self.config
        self.recipe = recipe_of_data(config, facts, self.corpus)
        phases = phase_table.phase_table(config, self.recipe, facts)
        self.system = make_system(config, self.recipe, mesh)
        self.timeline, self._dev_losses = Timeline(self.recipe), None
        self.tracer = profiler.Tracer(options.profile_steps, workdir, self.timeline.total)
        stack.callback(self.tracer.close)

        if self.is_main:  # before the first file is written
            stack.enter_context(run_lock.locked(workdir))
        policy = {name: config[name] for name in ("keep", "keep_every", "on_full_disk")}
        policy["keep_steps"] = tuple(self.timeline.ends)
        self.checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, **policy)))
        origin = self._restore_or_initialise(options)
        if self.is_main:
            write_config(given, workdir, self.corpus.tokenizers, self.corpus.chosen_lengths)
            about = mesh, sizes(self.system, self.corpus), measured
            write_facts(config, workdir, self.recipe, self.timeline, phases, *about)
            stack.callback(self.corpus.quarantined.write, workdir / "quarantine.jsonl")
        writer = MetricWriter(workdir, self.restored, active=self.is_main)
        stack.callback(writer.close)
        if self.restored is not None:
            self.clock.resume(self.meta.seconds, writer.dropped)
        self.progress = self._make_progress()
        window = metrics.Window(self.meta.window, self.meta.skipped)
        alarms = (CollapseAlarm(**config.collapse), StarvationAlarm.of(config))
        self.log = MetricLog(window, writer, self.progress, self.clock, alarms, self._check_finite)
        plan = [*map(phase_table.describe_row, phases), *phase_table.long_warmups(phases)]
        self._log_all(f"workdir: {workdir}", *describe(self.system, self.corpus), *scaled, *plan)
        self._log_all(*origin)
        self._compile_ahead(stack)
        self._init_optimizer = jax.jit(
            self.system.optimizer.init, out_shardings=self.system.shardings.opt_state
        )
        segments, start = self.timeline.segments, int(self.state.step)
        self.batches = self.corpus.train_batches(segments, start, shard=self.shard)
        self.save_timer = SaveTimer(config.save_minutes, config.log_every)

    def _read_data(self, mesh: Mesh) -> recipes.Facts:
        """Set `corpus`; returns what a recipe depends on."""
        budget_trial.check(self.config)
        stage = "reading the data: manifests, texts, headers of files without a duration"
        with console.log_if_slow(stage, active=self.is_main):
            self.corpus = load_data(self.config, mesh, saved_tokenizers(self.config, self.workdir))
        return corpus_facts(self.corpus)

    def _scale(self, facts: recipes.Facts, mesh: Mesh) -> tuple[budget.Measured | None, list[str]]:
        """Scale `config` to its budget: (what a trial has measured, log lines)."""
        about = self.workdir, self.corpus, facts, mesh, self.clock
        measured = budget_trial.find(self.config, *about)
        self.config, lines = budget.scale(self.config, facts, measured)
        return measured, lines

    def evaluate(self, split: str, weights: Weights) -> scoring.Scored:
        """Scores of all tasks by greedy decoding. Every process decodes the whole split. Raises
        `preemption.Abandoned` where the run is to save and end."""

        def decode(task: Task, batch: dict) -> Any:
            self.stop.abandon_if_requested()
            return self.decoders.run(task, weights, batch)

        return scoring.score_tasks(split, self.recipe.tasks, self.corpus, decode)

    def evaluate_losses(self, phase: Phase) -> dict[str, float]:
        """Self-supervised losses of dev (`dev_losses`) in a phase; raises `Abandoned` as above."""
        if self._dev_losses is None:
            about = self.recipe, self.corpus, self.system.mesh
            self._dev_losses = DevLosses(*about, self._pool)
        return self._dev_losses(self.state, phase.losses)

    def reset_moments(self) -> None:
        """Replace the optimizer state by a fresh one."""
        self.state = self.state._replace(opt_state=self._init_optimizer(self.state.params))

    def start_anew(self) -> None:
        """Replace the state by that of a phase that starts anew (`initial_state.start_anew`)."""
        parts = self.config, self.recipe, self.system.optimizer, self.corpus.tokenizers
        made = initial_state.start_anew(*parts, self.state)
        self.state = jax.device_put(made, self.system.shardings)
        self.progress.log("the averaged parameters teach; the parameters start anew")

    def _restore_or_initialise(self, options: RunOptions) -> list[str]:
        """Set `state`, `best` (weights of the best dev score), `meta` and `restored` (step of the
        checkpoint, None for a new run): from the newest valid checkpoint, else a fresh state.
        Returns log lines on where the state comes from."""
        found = self.checkpoints.restore_newest(self.system.state)
        self.restored = None if found is None else found.step
        if found is not None:
            self.state, self.best, self.meta = (
                found.state,
                found.best,
                RunMeta.from_json(found.meta),
            )
            check_data(self.meta, self.corpus, self.workdir, options.allow_config_change)
            return [f"resumed from step {found.step}"]
        stage = "initialising, with feature statistics of at most 20 batches"
        with console.log_if_slow(stage, active=self.is_main):
            state, origin = initial_state.make_state(
                self.config, self.recipe, self.system.optimizer, self.corpus
            )
        self.state = jax.device_put(state, self.system.shardings)
        self.best = jax.tree.map(jnp.copy, self.state.weights)
        self.meta = RunMeta(self.corpus.digest())
        return origin

    def _log_all(self, *lines: str) -> None:
        for line in lines:
            self.progress.log(line)

    def _make_progress(self) -> Progress:
        kinds = [device.device_kind for device in self.system.mesh.devices.flat]
        peak = peak_flops.flops(kinds, self.config.model.dtype)
        computed, start = flops.named(self.meta.compute), int(self.state.step)
        total = self.timeline.total
        return Progress(total, start, self.clock, computed, peak, active=self.is_main)

    def _compile_ahead(self, stack: contextlib.ExitStack) -> None:
        """Set `steps` and `decoders`, compile the programs of the run in background threads, and
        wait for the first."""
        programs = RunPrograms(
            *(self.config, self.system, self.timeline, self.corpus, self.progress.log, self.clock),
            shard=self.shard,
            check=self.stop.abandon_if_requested,
        )
        stack.callback(programs.pool.close)
        self.steps, self.decoders, self._pool = programs.steps, programs.decoders, programs.pool
        self.progress.log(programs.plan.describe())
        for job in programs.submit(int(self.state.step)):
            if not job.future.done():
                self.progress.log(f"compiling {programs.pool.position(job)}")
            programs.pool.wait(job)

    def _check_finite(self, window: metrics.Window) -> None:
        """UserError when `config.max_skipped` consecutive steps were skipped as not finite; their
        utterances are listed in not_finite.json."""
        if window.longest_skip < self.config.max_skipped:
            return
        last, segments = window.last_skipped, self.timeline.segments
        steps = range(last - window.longest_skip + 1, last + 1)
        read = {now: self.corpus.utterances_at(segments, now) for now in steps if now >= 0}
        path = self.workdir / "not_finite.json"
        if self.is_main:
            write_text(path, json.dumps(read, ensure_ascii=False, indent=2) + "\n")
        raise UserError(
            f"{len(steps)} steps in a row were not finite, {steps[0]} to {last}; the last one read "
            f"{', '.join(read[last][:3])}, ... (all in {path}): lower config.lr, or look for "
            "broken audio"
        )


def load_data(config: Any, mesh: Mesh, tokenizers: Any = None) -> Corpus:
    """The corpus of `config.data`, with batches that the mesh divides; `tokenizers` are those of
    the run to resume if there is one."""
    rows = batch_devices(mesh) * config.accumulate
    corpus = load_corpus(
        config.data,
        seed=config.seed,
        multiple=rows,
        tokenizers=tokenizers,
        phases=config.phases,
    )
    train_sample.add(corpus, 0 if config.data.overfit else config.data.train_sample)
    return corpus


def recipe_of_data(config: Any, facts: recipes.Facts, corpus: Corpus) -> Recipe:
    """`build_recipe`; UserError for frame labels beyond the classes of the loss that reads them."""
    recipe = build_recipe(config, facts)
    for objective in recipe.objectives:
        classes, field = getattr(objective, "frame_classes", (0, ""))
        if classes:
            corpus.frame_labels.check_classes(classes, field)
    corpus.replay = recipe.replay
    return recipe


def corpus_facts(corpus: Corpus) -> recipes.Facts:
    """Vocabulary sizes, steps per epoch and batch shapes, by stream, and the measure of one."""
    return recipes.Facts(
        vocab_sizes={name: units.vocab_size for name, units in corpus.tokenizers.items()},
        steps_per_epoch={name: plan.batches_per_epoch for name, plan in corpus.plans.items()},
        mix=corpus.mix,
        measure=corpus.suited_measure,
        buckets={name: tuple(plan.buckets) for name, plan in corpus.plans.items()},
    )


def parameter_counts(system: System) -> dict[str, int]:
    """{group: number of its parameters}."""
    counts = {g.name: 0 for g in system.recipe.groups}
    leaves = (jax.tree.leaves(tree) for tree in (system.groups, system.state.params))
    for group, leaf in zip(*leaves, strict=True):
        counts[group.name] += leaf.size
    return counts


def sizes(system: System, corpus: Corpus) -> dict[str, str]:
    """{what: number and unit} of parameters, training audio and labels, for reports."""
    found = {"parameters": f"{sum(parameter_counts(system).values()):,}"}
    for stream in corpus.plans:
        utterances = corpus.utterances(stream)
        length = in_hours(3600 * hours(utterances))
        found[f"{stream} audio"] = f"{length}, {len(utterances):,} utterances"
        audio, padded = corpus.plans[stream].audio
        found[f"{stream} epoch"] = f"{in_hours(audio)}, {1 - audio / padded:.1%} padding"
        for name, (read, there) in corpus.plans[stream].hours_of_sources().items():
            share = f"{in_hours(3600 * read)} of the {in_hours(3600 * there)} of it"
            found[f"{stream} epoch, {name}"] = share
    for stream, units in corpus.tokenizers.items():
        found[f"labels, {stream}"] = f"{units.vocab_size - 1} {units.unit}s and the blank"
    return found


def describe(system: System, corpus: Corpus) -> list[str]:
    """Lines on the data and the number of parameters per group."""
    recipe, counts = system.recipe, parameter_counts(system)
    recognised = [task.stream for task in recipe.tasks if task.predict]
    return [
        *corpus.summary(),
        *corpus.infeasible(recipe.frames, recognised),
        "parameters: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()),
        *(f"warning: {line}" for line in recipe.warnings),
    ]
