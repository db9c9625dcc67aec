"""The loop. Read it top to bottom: build, restore, then  evaluate -> save -> next batch -> step.

Evaluation and saving come before the batch is drawn, so a checkpoint holds the state *before* its
step and the step number alone says where the data stand. A run killed anywhere goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax import checkpoint, evaluate, metrics, optim, recipes, report, sharding, step, system
from bljust_jax.data import pipeline
from bljust_jax.errors import UserError
from bljust_jax.progress import Progress


def run(config: Any, workdir: pathlib.Path) -> dict | None:
    """Train `config` in `workdir`. Returns the final metrics, or None when a SIGTERM ended the run
    early. Files are closed and saves finished however it ends."""
    with contextlib.ExitStack() as stack:
        return _run(config, workdir, stack)


def _run(config: Any, workdir: pathlib.Path, stack: contextlib.ExitStack) -> dict | None:
    # ---------------------------------------------------------------- build
    check_config(config, workdir)
    enable_compile_cache(config.compile_cache)
    preempted = catch_sigterm(stack)
    first = jax.process_index() == 0
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    corpus = pipeline.load(config.data, seed=config.seed, multiple=mesh.size)
    recipe = build_recipe(config, corpus)
    optimizer = optim.make(recipe.combiner, recipe.groups, b1=config.optim.b1, b2=config.optim.b2)
    segments = make_segments(recipe)
    total = segments[-1].start + segments[-1].length

    # ---------------------------------------------------------------- restore
    checkpoints = stack.enter_context(
        contextlib.closing(checkpoint.Checkpoints(workdir, config.keep))
    )
    abstract = jax.eval_shape(lambda: step.init_state(recipe, optimizer, config.seed))
    placed = sharding.state_sharding(abstract, mesh, optim.path_name)
    restored = checkpoints.latest()
    if restored is None:
        state = step.init_state(recipe, optimizer, config.seed)
        state = state._replace(stats=state.stats | recipe.statistics(corpus.sample_audio(20)))
        state = jax.device_put(state, placed)
        best = jax.tree.map(jnp.copy, state.weights)
        meta = {"best": None, "compute": {"flops": 0.0, "audio_hours": 0.0}}
        meta |= {"window": {}, "skipped": 0, "data": corpus.digest()}
    else:
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
        )
        state, best, meta = checkpoints.restore(restored, target)
        if meta["data"] != corpus.digest():
            raise UserError(f"{workdir} was trained on other data or devices; name a new --workdir")
    start = int(state.step)
    write_config(config, workdir, corpus)

    # ---------------------------------------------------------------- say what will run
    progress = Progress(total, start, active=first)
    writer = stack.enter_context(
        contextlib.closing(metrics.Writer(workdir, restored, active=first))
    )
    window = metrics.Window(meta["window"], meta["skipped"])
    groups = optim.assign(state.params, recipe.groups)
    progress.say(f"workdir: {workdir}")
    for line in [*corpus.summary(), *describe(recipe, groups, state.params)]:
        progress.say(line)
    if restored is not None:
        progress.say(f"resumed from step {start}")

    programs = {
        p.name: jax.jit(
            step.make_train_step(recipe, p, optimizer, groups, config.seed),
            donate_argnums=0,
            out_shardings=(placed, None),
        )
        for p in recipe.phases
    }
    fresh_moments = jax.jit(optimizer.init, out_shardings=placed.opt_state)
    best_paths = jax.jit(partial(evaluate.best_paths, recipe))

    def score(split: str, weights: system.Weights) -> evaluate.Result:
        return evaluate.run(
            split, corpus, lambda batch: best_paths(weights, sharding.put_batch(batch, mesh))
        )

    shard = (jax.process_index(), jax.process_count())
    batches = iter(corpus.train_batches(segments, start, shard=shard))
    audio_seconds, waited, compiled = 0.0, 0.0, set()
    phase_at = PhaseAt(segments, recipe.phases)

    # ---------------------------------------------------------------- the loop
    for now in range(start, total + 1):
        # evaluate
        if now != restored and (now == total or (now % config.eval_every == 0 and now > 0)):
            with progress.aside():
                result = score("dev", state.weights)
            writer.write(now, result.scores)
            evaluate.write_samples(workdir / "samples" / f"dev-{now}.jsonl", result.pairs)
            progress.say(f"step {now}, phase {phase_at(now - 1).name}")
            for line in evaluate.describe("dev", result, config.samples):
                progress.say(line)
            errors = [result.scores["dev/wer"], result.scores["dev/cer"]]
            if meta["best"] is None or errors < meta["best"]["errors"]:
                meta["best"] = {"errors": errors, "step": now}
                best = jax.tree.map(jnp.copy, state.weights)

        # save
        stopping = preempted() and now < total
        if now != restored and (now % config.save_every == 0 or now == total or stopping):
            with progress.aside():
                meta |= {"window": window.settle(), "skipped": window.skipped}
                checkpoints.save(now, state, best, meta)
        if stopping:
            progress.say(f"stopped by SIGTERM at step {now}, saved; run the same command to go on")
            return None
        if now == total:
            break

        # next batch
        phase = phase_at(now)
        if phase.moments == "reset" and (now == 0 or phase_at(now - 1) is not phase):
            state = state._replace(opt_state=fresh_moments(state.params))
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        shapes = corpus.shape_at(segments, now)
        announce_compile(progress, compiled, phase.name, shapes)

        # step
        state, means = programs[phase.name](state, sharding.put_batch(batch, mesh))
        window.add(means)
        audio_seconds += count_compute(meta["compute"], recipe, phase, shapes)

        # log
        if (now + 1) % config.log_every == 0 or now + 1 == total:
            row = {**window.means(), **name_compute(meta["compute"])}
            row |= progress.rates(now + 1, audio_seconds, waited)
            row["perf/compiles"] = len(compiled)
            audio_seconds, waited = 0.0, 0.0
            writer.write(now + 1, row)
            progress.show(now + 1, phase.name, row)
            check_finite(window.longest_skip, config.max_skipped, now + 1)

    # ---------------------------------------------------------------- the end
    final = {"best_step": meta["best"]["step"]}
    for split in ("dev", "test") if config.data.test else ("dev",):
        result = score(split, best)
        evaluate.write_samples(workdir / "samples" / f"{split}-best.jsonl", result.pairs)
        final |= result.scores
        for line in evaluate.describe(split, result, config.samples):
            progress.say(line)
    final |= name_compute(meta["compute"])
    final |= {"step": total, "params_digest": checkpoint.digest(state.params)}
    writer.write(total, {"final": True, **final})
    if first:
        report.write(workdir, config, recipe.phase_table, final)
    return final


# What the loop asks for, in its order


def check_config(config: Any, workdir: pathlib.Path) -> None:
    """UserError for intervals below 1, and for a workdir that holds a run of another config."""
    for name in ("eval_every", "save_every", "log_every", "keep", "max_skipped"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} must be at least 1")
    path = workdir / "config.json"
    if not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    old, new = (flatten(json.loads(text)) for text in (path.read_text(), config.to_json()))
    changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in MAY_CHANGE]
    if changed:
        shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"{workdir} holds a run of another config ({shown}{more}); name a new --workdir"
        )


# Fields that a run may be resumed with other values of: they change no number.
MAY_CHANGE = (
    *("data.num_threads", "data.prefetch", "mesh.data", "mesh.fsdp"),
    *("keep", "samples", "compile_cache", "max_skipped"),
)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        inner = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def build_recipe(config: Any, corpus: pipeline.Corpus) -> system.Recipe:
    """The recipe of `config.recipe`; what it finds wrong with the config is a UserError."""
    facts = recipes.Facts(
        vocab_size=corpus.tokenizer.vocab_size,
        steps_per_epoch={name: plan.batches_per_epoch for name, plan in corpus.plans.items()},
    )
    try:
        recipe = recipes.load(config.recipe)(config, facts)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    if not recipe.phases:
        raise UserError("config.phases: every phase has length 0")
    return recipe


class PhaseAt:
    """Step -> phase, by a table."""

    def __init__(self, segments: list[pipeline.Segment], phases: tuple[system.Phase, ...]):
        self._starts = np.array([s.start for s in segments])
        self._phases = phases

    def __call__(self, now: int) -> system.Phase:
        return self._phases[int(np.searchsorted(self._starts, now, side="right")) - 1]


def make_segments(recipe: system.Recipe) -> list[pipeline.Segment]:
    """The phases as stretches of steps, each with the streams that its objectives read."""
    segments, start = [], 0
    for phase in recipe.phases:
        streams = {s for o in recipe.active(phase) for s in o.streams}
        segments.append(pipeline.Segment(start, phase.steps, tuple(sorted(streams))))
        start += phase.steps
    return segments


def describe(recipe: system.Recipe, groups: Any, params: Any) -> list[str]:
    """Parameter counts a group, and the phase table."""
    counts = {g.name: 0 for g in recipe.groups}
    for group, leaf in zip(jax.tree.leaves(groups), jax.tree.leaves(params), strict=True):
        counts[group.name] += leaf.size
    lines = ["parameters: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())]
    return lines + [
        f"phase {name}: {n} steps of {levels}" for name, n, levels in recipe.phase_table
    ]


def count_compute(
    compute: dict, recipe: system.Recipe, phase: system.Phase, shapes: dict[str, tuple[int, float]]
) -> float:
    """Add one step to the running totals: encoder FLOPs (forward 1, backward 2) over padded audio.
    Returns its seconds."""
    audio = 0.0
    for objective in recipe.active(phase):
        for loss in sorted(phase.losses & set(objective.losses)):
            rows, seconds = shapes[objective.streams[0]]
            compute["flops"] += 3 * rows * recipe.cost(loss, seconds)
            compute[f"updates/{loss}"] = compute.get(f"updates/{loss}", 0) + 1
            audio += rows * seconds
    compute["audio_hours"] += audio / 3600
    return audio


def name_compute(compute: dict) -> dict[str, float]:
    named = {f"compute/{k}": v for k, v in compute.items() if k != "flops"}
    return {"compute/encoder_tflop": compute["flops"] / 1e12, **named}


def check_finite(skipped: int, limit: int, now: int) -> None:
    """Give up when `limit` steps in a row were skipped."""
    if skipped >= limit:
        raise UserError(
            f"{skipped} steps in a row were not finite, up to step {now}: lower config.lr, or look "
            "for audio that is silent or broken"
        )


def announce_compile(progress: Progress, seen: set, phase: str, shapes: dict) -> None:
    """Say what the pause is when a new program has to be compiled."""
    key = (phase, tuple(sorted(shapes.items())))
    if key not in seen:
        seen.add(key)
        sizes = ", ".join(f"{n} {r} x {seconds:g} s" for n, (r, seconds) in sorted(shapes.items()))
        progress.say(f"compiling program {len(seen)}: {phase}, {sizes}")


def write_config(config: Any, workdir: pathlib.Path, corpus: pipeline.Corpus) -> None:
    """config.json and tokenizer.json: with a checkpoint, all that evaluation and export need."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
    tokenizer = json.dumps(corpus.tokenizer.to_json(), ensure_ascii=False)
    (workdir / "tokenizer.json").write_text(tokenizer + "\n")


def enable_compile_cache(folder: str) -> None:
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def catch_sigterm(stack: contextlib.ExitStack) -> Callable[[], bool]:
    """A function that says whether SIGTERM has arrived; the old handler returns with the stack."""
    arrived = []
    old = signal.signal(signal.SIGTERM, lambda *_: arrived.append(True))
    stack.callback(signal.signal, signal.SIGTERM, old)
    return lambda: bool(arrived)
