"""The training loop: evaluate -> save -> next batch -> step -> log.

Evaluation and saving come before the batch is drawn, so a checkpoint holds the state *before* its
step, and the step number alone determines the position in the data. A run killed at any time
resumes bit for bit. What happens before the first step is in `setup.py`.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax import reporting
from bljust_jax.bilevel.types import Weights
from bljust_jax.common.trees import digest
from bljust_jax.data import train_sample
from bljust_jax.inference import scoring
from bljust_jax.monitoring import flops, goodput
from bljust_jax.parallel import preemption
from bljust_jax.parallel.mesh import put_batch, to_host
from bljust_jax.reporting import example
from bljust_jax.train.dev_losses import head_has_trained
from bljust_jax.train.setup import RunOptions, TrainingRun

DEFAULTS = RunOptions()


def run(config: Any, workdir: pathlib.Path, options: RunOptions = DEFAULTS) -> dict | None:
    """Train `config` in `workdir`. Returns the final metrics, or None when SIGTERM or SIGHUP ended
    the run early, after a save; for Ctrl-C raises KeyboardInterrupt, after a save, too. Files are
    closed and saves finished however it ends."""
    with contextlib.ExitStack() as stack:
        return train(TrainingRun(config, workdir, options, stack))


def train(run: TrainingRun) -> dict | None:
    """The loop, from `run.state` to the last step."""
    config, clock, corpus, meta, log = run.config, run.clock, run.corpus, run.meta, run.log
    progress, timeline, recipe = run.progress, run.timeline, run.recipe
    total, saved = timeline.total, run.restored
    progress.log(f"ready after {clock.age:.0f} s")
    clock.turn("step")
    run.stop.save_first()
    for now in range(int(run.state.step), total + 1):
        ending = now == total or bool(meta.early.reason(config.stop))
        stopping, fresh = run.stop.requested(now) and not ending, now != run.restored
        evaluating = ending or (now % config.eval_every == 0 and now > 0)
        evaluating = evaluating and (fresh or meta.unscored)
        due = now % config.save_every == 0 or run.save_timer.is_due(now) or now in timeline.ends
        if evaluating or stopping or due:
            log.write_pending()

        # evaluate
        if evaluating:
            meta.unscored = not evaluate(run, now, ending)
            stopping |= meta.unscored
            ending &= not meta.unscored
        if not (ending or meta.unscored) and (reason := meta.early.reason(config.stop)):
            progress.log(f"training ends at step {now} of {total}: {reason}")
            ending, due, stopping = True, True, False

        # save
        if fresh and (due or stopping):
            save(run, now)
            saved = now
            stopping |= run.stop.received_alone and not ending
            if now in timeline.ends and not ending:
                at = f"--config.init_from={run.workdir}@{now}"
                progress.log(f"phase {timeline.ends[now]} ends, checkpoint kept: {at} starts here")
        if stopping:
            return stop(run, now)
        if ending:
            break

        # next batch
        phase = timeline.phase_at(now)
        if phase.moments == "reset" and timeline.starts_phase(now):
            run.reset_moments()
        if phase.anew and timeline.starts_phase(now):
            run.start_anew()
        with clock.on("input"):
            batch = next(run.batches)

        # step
        batch = put_batch(batch, run.system.mesh)
        try:
            with run.tracer.step(now):
                run.state, means = run.steps.run(now, phase.name, run.state, batch)
        except preemption.Abandoned:  # while it waited for a program
            log.write_pending()
            if saved != now:
                save(run, now)
            return stop(run, now)
        flops.count(meta.compute, recipe, phase, corpus.shape_at(timeline.segments, now))

        # log: a window is fetched while the step after it runs, so that no step waits
        log.write_pending()
        log.add(now, means)
        if timeline.ends_window(now + 1, config.log_every):
            row = flops.named(meta.compute) | {"perf/compiles": len(run.steps)}
            row |= {"perf/compile_stall": run.steps.take_stall()}
            row |= {"data/quarantined": len(corpus.quarantined)}
            log.end_window(now + 1, phase.name, row)
    run.stop.end_at_once()  # the last step is saved
    return finish(run, now)


def evaluate(run: TrainingRun, now: int, ending: bool) -> bool:
    """Score dev by the averaged parameters at step `now`, and keep the best; before a head has
    trained, the self-supervised losses of dev instead. False if a signal ended the evaluation."""
    progress, phase = run.progress, run.timeline.phase_at(now - 1).name
    heads = ending or head_has_trained(run.recipe, run.timeline, now)
    try:
        with run.clock.on("evaluate"):
            if heads:
                scored = run.evaluate("dev", run.state.weights)
                heard = run.evaluate(train_sample.NAME, run.state.weights)
            else:
                losses = run.evaluate_losses(run.timeline.phase_at(now - 1))
    except preemption.Abandoned:
        progress.log(f"step {now}: the evaluation is put off until the run goes on")
        return False
    if not heads:
        run.log.writer.write(now, losses)
        values = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        progress.log(f"step {now}, phase {phase}: {values}")
        run.best = jax.tree.map(jnp.copy, run.state.weights)
        return True
    run.log.writer.write(now, scored.scores | heard.rates)
    if run.is_main:
        scoring.write_samples(run.workdir / "samples", now, scored)
    progress.log(f"step {now}, phase {phase}")
    for line in [*scored.describe(run.config.samples), *heard.describe(0)]:
        progress.log(line)
    improved = run.meta.update_best(scored.rank, now)
    if improved:
        run.best = jax.tree.map(jnp.copy, run.state.weights)
    last = phase == run.timeline.phase_at(run.timeline.total).name
    run.meta.early.count(improved=improved, error=scored.rank[0], in_last_phase=last)
    return True


def save(run: TrainingRun, now: int) -> None:
    """Write the checkpoint of step `now`; rows reach the disk before it."""
    meta, log = run.meta, run.log
    meta.window, meta.skipped = log.window.settle(), log.window.skipped
    meta.quarantined, meta.seconds = run.corpus.quarantined.state(), run.clock.seconds()
    with run.clock.on("save"):
        log.writer.sync()
        run.checkpoints.save(now, run.state, run.best, meta.to_json())
    run.save_timer.restart()


def stop(run: TrainingRun, now: int) -> None:
    """End the run for a signal, saved at step `now`; KeyboardInterrupt for Ctrl-C."""
    run.progress.log(goodput.describe(run.clock.shares()))
    run.progress.log(f"stopped by {run.stop.cause}; the same command goes on from step {now}")
    if run.stop.interrupted:
        raise KeyboardInterrupt


def finish(run: TrainingRun, step: int) -> dict:
    """Score the best weights on dev and test, and for comparison the raw parameters of the last
    step (metrics raw/...); write report and example. Returns the final metrics."""
    run.clock.turn("evaluate")
    final = {"best_step": run.meta.best.step}
    on_host = to_host(run.best)  # a collective operation: all processes call it
    for split in ("dev", train_sample.NAME, "test"):
        scored = run.evaluate(split, run.best)
        if run.is_main:
            scoring.write_samples(run.workdir / "samples", "best", scored)
        final |= scored.scores
        for line in scored.describe(run.config.samples):
            run.progress.log(line)
        if split == "dev" and run.is_main:
            write_example(run, on_host, scored)
    final |= score_raw(run)
    final |= flops.named(run.meta.compute) | {"data/quarantined": len(run.corpus.quarantined)}
    final |= {"step": step, "params_digest": digest(to_host(run.state.params))}
    shares = run.clock.shares()
    run.log.writer.write(step, {"final": True, **final, **shares})
    run.progress.log(goodput.describe(shares))
    if run.is_main:
        reporting.write(run.workdir)
    return final


def score_raw(run: TrainingRun) -> dict[str, float]:
    """Scores raw/dev/... and raw/test/... of the parameters of the last step, not averaged."""
    final: dict[str, float] = {}
    for split in ("dev", "test"):
        scored = run.evaluate(split, Weights(run.state.params, run.state.stats))
        final |= {f"raw/{name}": value for name, value in scored.scores.items()}
        for line in scored.describe(0):
            if line != scoring.NOT_LEARNED:  # logged for the averaged ones
                run.progress.log(f"parameters of the last step, {line}")
    return final


def write_example(run: TrainingRun, weights: Weights, scored: scoring.Scored) -> None:
    """example.npz for the report: a typical utterance of the first recognition task, if any."""
    task = next((task for task in scored.tasks if task.predict), None)
    if task is None:
        return
    part, corpus = task.split(scored.split), run.corpus
    seconds = {u.id: u.duration for u in corpus.utterances(part)}
    pairs, covers = scored.results[task.name].pairs, corpus.tokenizer_of(part).covers
    name = reporting.typical(pairs, seconds, covers)
    if name is not None:
        weights, log_mel = jax.tree.map(jnp.asarray, weights), run.recipe.log_mel
        rate = run.config.data.sample_rate
        shown = example.make(task.predict, log_mel, weights, corpus, part, name, rate)
        utterance = next(u for u in corpus.utterances(part) if u.id == name)
        shown |= example.augmented(log_mel, utterance, run.config)
        example.write(run.workdir / "example.npz", shown)
