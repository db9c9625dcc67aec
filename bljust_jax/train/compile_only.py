"""Fill the compile cache with the programs of a run, without training (`bljust compile`)."""

import functools
import os
from typing import Any

import jax

from bljust_jax.bilevel import step
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.goodput import Clock
from bljust_jax.parallel.compile_cache import enable_compile_cache
from bljust_jax.parallel.mesh import make_mesh
from bljust_jax.train import budget
from bljust_jax.train.compile_pool import Job
from bljust_jax.train.program_memory import memory_needed
from bljust_jax.train.run_programs import RunPrograms
from bljust_jax.train.setup import corpus_facts, load_data, recipe_of_data
from bljust_jax.train.system import make_system, seed_of
from bljust_jax.train.timeline import Timeline


def compile_config(config: Any) -> dict[str, Any]:
    """Compile all programs of a run from its first step on into `config.compile_cache`.

    Returns {"cache": folder, "programs": [{"name", "seconds", "bytes" per device}]}. UserError
    without a folder, for a budget in minutes or hours, and for a batch too large for the device.
    """
    if not config.compile_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        raise UserError("config.compile_cache is empty: name the folder that keeps the programs")
    if budget.is_time(config):
        raise UserError(
            f"config.budget_unit={config.budget_unit}: a run measures its schedule, which its"
            " programs depend on: give config.budget in units of gradient, epoch or tflop"
        )
    enable_compile_cache(config.compile_cache)
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        corpus = load_data(config, mesh)
        facts = corpus_facts(corpus)
        config, _ = budget.scale(config, facts)
        recipe = recipe_of_data(config, facts, corpus)
        system = make_system(config, recipe, mesh)
        programs = RunPrograms(config, system, Timeline(recipe), corpus, log, Clock())
        log(programs.plan.describe())
        init = step.jit_init_state(recipe, system.optimizer)
        lower = functools.partial(init.lower, seed_of(config))
        programs.pool.submit(Job("initial state", "choose a smaller config.model", lower))
        programs.submit(0)
        made = [(job, programs.pool.wait(job)) for job in programs.pool.jobs]
    figures = [
        {"name": job.name, "seconds": round(job.seconds, 1), "bytes": memory_needed(program)}
        for job, program in made
    ]
    return {"cache": jax.config.jax_compilation_cache_dir, "programs": figures}
