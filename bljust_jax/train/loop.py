"""The loop. Read it top to bottom: build, restore, then  evaluate -> save -> next batch -> step.

Evaluation and saving come before the batch is drawn, so a checkpoint holds the state *before* its
step and the step number alone says where the data stand. A run killed anywhere goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax import recipes, reporting
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters, make_optimizer
from bljust_jax.bilevel.types import Phase, Recipe, Task, Weights
from bljust_jax.checkpoint.manager import Checkpoints, Timer, digest
from bljust_jax.common import trees
from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Corpus, Segment, load_corpus
from bljust_jax.inference import scoring
from bljust_jax.monitoring import flops, goodput, metrics, peak_flops, profiler
from bljust_jax.monitoring.codebook_collapse import CollapseAlarm
from bljust_jax.monitoring.progress import Progress
from bljust_jax.parallel import cluster
from bljust_jax.parallel.compile_cache import keep_compiled
from bljust_jax.parallel.mesh import (
    batch_devices,
    make_mesh,
    place,
    put_batch,
    put_whole,
    replicated,
    state_sharding,
    to_host,
)
from bljust_jax.reporting import example
from bljust_jax.train import initial_state
from bljust_jax.train.compiled_steps import Programs
from bljust_jax.train.workdir import (
    check_config,
    check_data,
    saved_tokenizers,
    write_config,
    write_facts,
)


class Asked(NamedTuple):
    """What a command line asks beside config and workdir."""

    began: float | None = None  # when the command started, by `time.monotonic`; None: now
    profile_steps: range = range(0)  # to be recorded
    allow_config_change: bool = False  # go on with a run of another config


NOTHING = Asked()


def run(config: Any, workdir: pathlib.Path, asked: Asked = NOTHING) -> dict | None:
    """Train `config` in `workdir`. Returns the final metrics, or None when a SIGTERM ended the run
    early. Files are closed and saves finished however it ends."""
    with contextlib.ExitStack() as stack:
        return _run(config, workdir, asked, stack)


def _run(
    config: Any, workdir: pathlib.Path, asked: Asked, stack: contextlib.ExitStack
) -> dict | None:
    # ---------------------------------------------------------------- build
    clock = goodput.Clock(asked.began)
    check_config(config, workdir, asked.allow_config_change)
    keep_compiled(config.compile_cache)
    preempted = cluster.preemption(stack)
    first = jax.process_index() == 0
    shard = (jax.process_index(), jax.process_count())
    mesh = make_mesh(**config.mesh)
    stack.enter_context(jax.set_mesh(mesh))  # kernels split their batch by it
    tokenizers = saved_tokenizers(config, workdir)
    rows = batch_devices(mesh) * config.accumulate
    corpus = load_corpus(config.data, seed=config.seed, multiple=rows, tokenizers=tokenizers)
    recipe = build_recipe(config, corpus)
    optimizer = make_optimizer(
        recipe.combiner, recipe.groups, b1=config.optim.b1, b2=config.optim.b2
    )
    groups = assign_groups(recipe, jax.eval_shape(recipe.init, jax.random.key(0))[0])
    segments = make_segments(recipe)
    total = segments[-1].start + segments[-1].length
    tracer = profiler.Tracer(asked.profile_steps, workdir, total)
    stack.callback(tracer.close)

    # ---------------------------------------------------------------- restore
    policy = {name: config[name] for name in ("keep", "keep_every", "on_full_disk")}
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, **policy)))
    abstract = jax.eval_shape(lambda: step.init_state(recipe, optimizer, config.seed))
    placed = state_sharding(abstract, mesh, trees.path_name)
    found = checkpoints.restore_newest(place(abstract, placed))
    restored = found and found.step
    if found is None:
        state, about_start = initial_state.make_state(config, recipe, optimizer, corpus)
        state = jax.device_put(state, placed)
        best = jax.tree.map(jnp.copy, state.weights)
        meta = {"best": None, "compute": dict(flops.FRESH)}
        meta |= {"window": {}, "skipped": 0, "data": corpus.digest(), "quarantined": []}
    else:
        _, state, best, meta = found
        check_data(meta, corpus, workdir, asked.allow_config_change)
        about_start = [f"resumed from step {restored}"]
    start = int(state.step)
    if first:
        write_config(config, workdir, corpus.tokenizers)
        starts, signatures = [s.start for s in segments], scoring.signatures(recipe.tasks)
        write_facts(config, workdir, recipe, starts, mesh, signatures)
        stack.callback(corpus.quarantined.write, workdir / "quarantine.jsonl")

    # ---------------------------------------------------------------- say what will run
    peak = peak_flops.flops([d.device_kind for d in mesh.devices.flat], config.model.dtype)
    computed = flops.named(meta["compute"])
    writer = stack.enter_context(
        contextlib.closing(metrics.Writer(workdir, restored, active=first))
    )
    if restored is not None:
        clock.resume(meta["seconds"], writer.dropped)
    progress = Progress(total, start, clock, computed, peak, active=first)
    window = metrics.Window(meta["window"], meta["skipped"])
    collapsed = CollapseAlarm(**config.collapse)
    progress.say(f"workdir: {workdir}")
    recognised = [task.stream for task in recipe.tasks if task.predict]
    about_data = [*corpus.summary(), *corpus.infeasible(recipe.frames, recognised)]
    for line in [*about_data, *describe(recipe, groups, state.params), *about_start]:
        progress.say(line)

    # ---------------------------------------------------------------- compile the largest batches
    jitted = jit_steps(recipe, optimizer, groups, placed, config)
    every = coming(segments, recipe.phases, 0).values()
    expected = sum(len(corpus.buckets_in_use(streams)) for streams in every)
    programs = Programs(jitted, expected, progress.say, clock)
    for name, streams in coming(segments, recipe.phases, start).items():
        last = corpus.buckets_in_use(streams)[-1]
        largest = corpus.blank_batch(streams, last, shard=shard)
        programs.compile(name, state, put_batch(largest, mesh))
    fresh_moments = jax.jit(optimizer.init, out_shardings=placed.opt_state)
    everywhere = replicated(mesh)  # every process decodes all of what is said
    greedily = {
        task.name: jax.jit(scoring.greedily(task), out_shardings=everywhere)
        for task in recipe.tasks
    }

    def score(split: str, weights: Weights) -> scoring.Scored:
        def say(task: Task, batch: dict) -> Any:
            return greedily[task.name](weights, put_whole(batch, mesh))

        return scoring.run(split, recipe.tasks, corpus, say)

    batches = iter(corpus.train_batches(segments, start, shard=shard))
    phase_at = PhaseAt(segments, recipe.phases)
    timer = Timer(config.save_minutes, config.log_every)
    closed: tuple | None = None  # (end, row, seconds waited) of the window not written yet

    def write_window() -> None:
        nonlocal closed
        if closed is None:
            return
        (end, row, waited), closed = closed, None
        row |= window.means()  # its steps are done then, so their rates are true
        row |= progress.rates(end, row, waited) | {goodput.WALL: clock.wall}
        writer.write(end, row)
        progress.show(end, phase_at(end - 1).name, row)
        check_finite(window, config.max_skipped, workdir, corpus, segments)
        for line in collapsed(row):
            progress.say(line)

    # ---------------------------------------------------------------- the loop
    progress.say(f"ready after {clock.age:.0f} s")
    clock.turn("step")
    for now in range(start, total + 1):
        stopping = preempted(now) and now < total
        fresh, ending = now != restored, now == total
        evaluating = fresh and (ending or (now % config.eval_every == 0 and now > 0))
        saving = ending or now % config.save_every == 0 or stopping or timer.is_due(now)
        saving = saving and fresh
        if evaluating or saving or stopping:
            write_window()

        # evaluate
        if evaluating:
            with clock.on("evaluate"):
                scored = score("dev", state.weights)
            writer.write(now, scored.scores)
            if first:
                scoring.write_samples(workdir / "samples", now, scored)
            progress.say(f"step {now}, phase {phase_at(now - 1).name}")
            for line in scored.describe(config.samples):
                progress.say(line)
            if meta["best"] is None or scored.rank < meta["best"]["errors"]:
                meta["best"] = {"errors": scored.rank, "step": now}
                best = jax.tree.map(jnp.copy, state.weights)

        # save
        if saving:
            meta |= {"window": window.settle(), "skipped": window.skipped}
            meta |= {"quarantined": corpus.quarantined.state(), "seconds": clock.seconds()}
            with clock.on("save"):
                writer.sync()  # no checkpoint is to outlive the rows before it
                checkpoints.save(now, state, best, meta)
            timer.restart()
        if stopping:
            progress.say(goodput.describe(clock.shares()))
            progress.say(f"stopped by SIGTERM at step {now}, saved; run the same command to go on")
            return None
        if now == total:
            break

        # next batch
        phase = phase_at(now)
        if phase.moments == "reset" and (now == 0 or phase_at(now - 1) is not phase):
            state = state._replace(opt_state=fresh_moments(state.params))
        with clock.on("input"):
            batch = next(batches)

        # step
        placed_batch = put_batch(batch, mesh)
        state, means = tracer.step(now, programs.run, phase.name, state, placed_batch)
        flops.count(meta["compute"], recipe, phase, corpus.shape_at(segments, now))

        # log: a window is fetched when the step after it is on its way, so that no step waits
        write_window()
        window.add(now, means)
        if (now + 1) % config.log_every == 0 or now + 1 == total:
            row = flops.named(meta["compute"]) | {"perf/compiles": len(programs)}
            row |= {"data/quarantined": len(corpus.quarantined)}
            closed = (now + 1, row, clock.seconds()["input"])

    # ---------------------------------------------------------------- the end
    clock.turn("evaluate")
    final = {"best_step": meta["best"]["step"]}
    shown = to_host(best)  # by all processes; the picture is the first one's alone
    for split in ("dev", "test"):
        scored = score(split, best)
        if first:
            scoring.write_samples(workdir / "samples", "best", scored)
        final |= scored.scores
        for line in scored.describe(config.samples):
            progress.say(line)
        if split == "dev" and first:
            picture(workdir, recipe, shown, corpus, scored, config.data.sample_rate)
    final |= flops.named(meta["compute"]) | {"data/quarantined": len(corpus.quarantined)}
    final |= {"step": total, "params_digest": digest(to_host(state.params))}
    shares = clock.shares()
    writer.write(total, {"final": True, **final, **shares})
    progress.say(goodput.describe(shares))
    if first:
        reporting.write(workdir)
    return final


# What the loop asks for, in its order


def build_recipe(config: Any, corpus: Corpus) -> Recipe:
    """The recipe of `config.recipe`; what it finds wrong with the config is a UserError."""
    facts = recipes.Facts(
        vocab_sizes={name: units.vocab_size for name, units in corpus.tokenizers.items()},
        steps_per_epoch={name: plan.batches_per_epoch for name, plan in corpus.plans.items()},
    )
    try:
        recipe = recipes.load(config.recipe)(config, facts)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    if not recipe.phases:
        raise UserError("config.phases: every phase has length 0")
    for task in recipe.tasks:
        scoring.measures.check(task)
    return recipe


def assign_groups(recipe: Recipe, params: Any) -> Any:
    """The group of each parameter; UserError for one that no parameter belongs to."""
    try:
        return group_of_parameters(params, recipe.groups)
    except ValueError as error:
        parts = ", ".join(params["encoder"])
        raise UserError(f"config.freeze: {error}; the encoder has {parts}") from error


class PhaseAt:
    """Step -> phase, by a table."""

    def __init__(self, segments: list[Segment], phases: tuple[Phase, ...]):
        self._starts = np.array([s.start for s in segments])
        self._phases = phases

    def __call__(self, now: int) -> Phase:
        return self._phases[int(np.searchsorted(self._starts, now, side="right")) - 1]


def make_segments(recipe: Recipe) -> list[Segment]:
    """The phases as stretches of steps, each with the streams that its objectives read."""
    segments, start = [], 0
    for phase in recipe.phases:
        streams = {s for o in recipe.active(phase) for s in o.streams}
        segments.append(Segment(start, phase.steps, tuple(sorted(streams))))
        start += phase.steps
    return segments


def describe(recipe: Recipe, groups: Any, params: Any) -> list[str]:
    """Parameter counts a group, and the phase table."""
    counts = {g.name: 0 for g in recipe.groups}
    for group, leaf in zip(jax.tree.leaves(groups), jax.tree.leaves(params), strict=True):
        counts[group.name] += leaf.size
    lines = ["parameters: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())]
    return lines + [
        f"phase {name}: {n} steps of {levels}" for name, n, levels in recipe.phase_table
    ]


def check_finite(
    window: metrics.Window,
    limit: int,
    workdir: pathlib.Path,
    corpus: Corpus,
    segments: list[Segment],
) -> None:
    """Give up when `limit` steps in a row were skipped, and name what they heard."""
    if window.longest_skip < limit:
        return
    last = window.last_skipped
    steps = range(last - window.longest_skip + 1, last + 1)
    heard = {now: corpus.names_at(segments, now) for now in steps if now >= 0}
    path = workdir / "not_finite.json"
    if jax.process_index() == 0:
        path.write_text(json.dumps(heard, ensure_ascii=False, indent=2) + "\n")
    raise UserError(
        f"{len(steps)} steps in a row were not finite, {steps[0]} to {last}; the last heard "
        f"{', '.join(heard[last][:3])}, ... (all in {path}): lower config.lr, or look for broken "
        "audio"
    )


def jit_steps(
    recipe: Recipe, optimizer: Any, groups: Any, placed: Any, config: Any
) -> dict[str, Any]:
    """{phase: its step}, not compiled yet."""
    return {
        p.name: jax.jit(
            step.make_train_step(recipe, p, optimizer, groups, config.seed, config.accumulate),
            donate_argnums=0,
            out_shardings=(placed, None),
        )
        for p in recipe.phases
    }


def coming(
    segments: list[Segment], phases: tuple[Phase, ...], start: int
) -> dict[str, tuple[str, ...]]:
    """{phase: streams} of those that take steps from `start` on."""
    return {
        phase.name: segment.streams
        for segment, phase in zip(segments, phases, strict=True)
        if segment.start + segment.length > start
    }


def picture(
    workdir: pathlib.Path,
    recipe: Recipe,
    weights: Weights,
    corpus: Corpus,
    scored: scoring.Scored,
    sample_rate: int,
) -> None:
    """example.npz: the utterance of the first recognition task that the report shows, if any."""
    task = next((task for task in scored.tasks if task.predict), None)
    if task is None:
        return
    part = task.split(scored.split)
    seconds = {u.id: u.duration for u in corpus.utterances(part)}
    pairs, covers = scored.results[task.name].pairs, corpus.tokenizer_of(part).covers
    name = reporting.typical(pairs, seconds, covers)
    if name is not None:
        weights = jax.tree.map(jnp.asarray, weights)
        shown = example.make(task.predict, recipe.log_mel, weights, corpus, part, name, sample_rate)
        example.write(workdir / "example.npz", shown)
