"""Time to trace, lower and compile each part of a training step, on a device or ahead of time.

Each part is a program of its own: augmented log-mel; the front end and the blocks of the encoder,
forward and backward; each loss on the encoder's output; all gradients; the optimizer with EMA; the
whole step. Nothing is executed.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bljust_jax import recipes
from bljust_jax.benchmarks.step import VOCAB_SIZE, Shape, make_batch, make_config
from bljust_jax.bilevel import gradients
from bljust_jax.bilevel.rng import row_keys, stream_key
from bljust_jax.bilevel.shared_phases import PhaseTable
from bljust_jax.bilevel.step import apply_gradients
from bljust_jax.bilevel.types import Extras, Phase, TrainState, Tree
from bljust_jax.common.trees import map_named, named_leaves
from bljust_jax.parallel.mesh import batch_sharding, make_mesh
from bljust_jax.train.system import System, jit_train_step, make_system, seed_of

# rows, seconds per row, width and blocks: those of the quickstart on a CPU
SHAPES = {
    "cpu": [Shape(13, 2, 96, 4)],
    "gpu": [Shape(64, 16, 512, 17)],
    "tpu": [Shape(32, 16, 512, 17)],
}


class Cost(NamedTuple):
    """CPU seconds of this process, all threads together."""

    trace: float
    lower: float
    compile: float


class Part(NamedTuple):
    """A jitted function and its abstract arguments."""

    jitted: Any
    args: tuple[Any, ...]


def measure(
    shape: Shape, *, dtype: str, rounds: int, log: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """{part: mean `Cost` over rounds} of the joint step of BL-JUST on this device."""
    config = make_config(shape, dtype)
    facts = recipes.Facts({"labelled": VOCAB_SIZE}, {"labelled": 1000, "unlabelled": 1000})
    recipe = recipes.load(config.recipe)(config, facts)
    system = make_system(config, recipe, make_mesh(data=1))
    phases = tuple(p for p in recipe.phases if p.name == "joint")
    batch = abstract(make_batch(shape), system)
    return costs(config, system, phases, batch, rounds, log)


def describe(found: dict[str, dict[str, float]]) -> list[str]:
    """A table in lines."""
    lines = [f"{'CPU seconds':24} {'trace':>8} {'lower':>8} {'compile':>8}"]
    for name, cost in found.items():
        lines.append(f"{name:24} " + " ".join(f"{seconds:8.1f}" for seconds in cost.values()))
    return lines


def abstract(batch: Tree, system: System) -> Tree:
    """Shapes and types of a batch, sharded over the devices of the system."""
    where = batch_sharding(system.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)


def costs(
    config: Any,
    system: System,
    phases: tuple[Phase, ...],
    batch: Tree,
    rounds: int,
    log: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """{part: mean `Cost` over rounds} of the step of these phases on an abstract batch.

    A small program is compiled first, so that no part pays for the start of the compiler.
    """
    total = {name: Cost(0, 0, 0) for name in makers(config, system, phases, batch)}
    with jax.set_mesh(system.mesh):
        cost_of(Part(jax.jit(lambda x: x + 1), (system.state.step,)))
        for _ in range(rounds):
            for name, make in makers(config, system, phases, batch).items():
                cost = cost_of(make())
                log(f"  {name}: {cost.trace:.1f} + {cost.lower:.1f} + {cost.compile:.1f} s")
                total[name] = Cost(*map(sum, zip(total[name], cost, strict=True)))
    return {name: Cost(*(x / rounds for x in cost))._asdict() for name, cost in total.items()}


def cost_of(part: Part, clock: Callable[[], float] = time.process_time) -> Cost:
    """Trace, lower and compile a part."""
    times = [clock()]
    traced = part.jitted.trace(*part.args)
    times.append(clock())
    lowered = traced.lower()
    times.append(clock())
    lowered.compile()
    times.append(clock())
    return Cost(*(b - a for a, b in itertools.pairwise(times)))


def makers(
    config: Any, system: System, phases: tuple[Phase, ...], batch: Tree
) -> dict[str, Callable[[], Part]]:
    """{part: a function that makes its program}, to be called under the system's mesh; each round
    makes them anew, as jax keeps traces."""
    table, state = PhaseTable(system.recipe, phases), system.state
    first, *_ = table.objectives
    made: dict[str, Callable[[], Part]] = {"log-mel": lambda: _features(first, batch)}
    for name, depth in (("front end", 0), ("front end, 1 block", 1), ("encoder", None)):
        made[name] = lambda depth=depth: _encoder(first, state, batch, depth)
    for o in table.objectives:
        if hasattr(o, "apply_encoded"):
            made[f"loss {o.name}"] = lambda o=o: _loss(o, state, batch)
    made["all gradients"] = lambda: Part(
        jax.jit(_take(config, system, table)), (system.state, batch)
    )
    made["optimizer, EMA"] = lambda: _tail(config, system, table, batch)
    made["step"] = lambda: Part(
        jit_train_step(config, system, phases), (state, batch, seed_of(config))
    )
    return made


def _features(objective: Any, batch: Tree) -> Part:
    def features(data):
        keys = row_keys(jax.random.key(0), data["ids"])
        audio = data["audio"], data["audio_lengths"]
        return objective.encoder.features(*audio, keys=keys, train=True, stats=None)[:2]

    return Part(jax.jit(features), (batch[objective.streams[0]],))


def _inputs(objective: Any, batch: Tree) -> tuple:
    """Abstract features and lengths."""
    features, args = _features(objective, batch)
    found = jax.eval_shape(features, *args)
    where = args[0]["audio"].sharding
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in found)


def _encode(objective: Any, state: TrainState, depth: int | None) -> Callable:
    def encode(params, x, lengths):
        options = {"context": "full", "train": True, "rng": jax.random.key(0), "depth": depth}
        return objective.encoder.encode({"encoder": params}, state.stats, x, lengths, **options)

    return encode


def _encoder(objective: Any, state: TrainState, batch: Tree, depth: int | None) -> Part:
    encode = _encode(objective, state, depth)

    def loss(params, x, lengths):
        return jnp.sum(jnp.square(encode(params, x, lengths).output))

    return Part(jax.jit(jax.grad(loss)), (state.params["encoder"], *_inputs(objective, batch)))


def _loss(objective: Any, state: TrainState, batch: Tree) -> Part:
    encoded = jax.eval_shape(
        _encode(objective, state, None), state.params["encoder"], *_inputs(objective, batch)
    )
    data, heads = batch[objective.streams[0]], sorted(objective.head_owners)
    where = data["audio"].sharding
    hidden = {name: encoded.hidden[name] for name in encoded.hidden if name == "latents"}
    encoded = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        encoded._replace(hidden=hidden, stats={}),
    )

    def loss(own, output, encoded, data):
        scale = dict.fromkeys(objective.losses, 1.0)
        extras = Extras(jnp.int32(0), state.frozen, state.stats, {}, scale)
        given = encoded._replace(output=output)
        losses, _ = objective.apply_encoded(own, extras, data, given, jax.random.key(0))
        return sum(total / jnp.maximum(weight, 1) for total, weight in losses.values())

    own = {name: state.params[name] for name in heads}
    return Part(jax.jit(jax.grad(loss, (0, 1))), (own, encoded.output, encoded, data))


def _take(config: Any, system: System, table: PhaseTable) -> Callable:
    """(state, batch) -> (gradients, weights of levels, metrics, statistics)."""
    owners = jax.tree.map(lambda g: g.owners, system.groups)
    shared = jax.tree.map(
        lambda o: o >= table.recipe.losses, owners, is_leaf=lambda x: isinstance(x, frozenset)
    )
    facts = gradients.StepFacts(table, shared, owners, config.accumulate)
    how = {"separate": gradients.separate, "fused": gradients.fused}[table.recipe.gradients]

    def take(state, batch):
        def key(name):
            return stream_key(config.seed, name, state.step)

        return how(facts, table.at(state.step), state, batch, key)

    return take


def _tail(config: Any, system: System, table: PhaseTable, batch: Tree) -> Part:
    grads, _, _, stats = jax.eval_shape(_take(config, system, table), system.state, batch)
    params = dict(named_leaves(system.state.params))

    def placed(name, x):
        """Sharded as the parameter whose gradient it is."""
        of = next((p for p in params if name.endswith(p) and params[p].shape == x.shape), None)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=params[of].sharding if of else None)

    grads = map_named(placed, grads)

    def tail(state, grads, stats):
        now = table.at(state.step)
        levels = now.weights if len(grads.levels) == len(now.weights) else (jnp.float32(1),)
        given = now, state, grads, levels, stats, {}
        return apply_gradients(system.optimizer, system.groups, *given)[0]

    jitted = jax.jit(tail, donate_argnums=0, out_shardings=system.shardings)
    return Part(jitted, (system.state, grads, stats))
