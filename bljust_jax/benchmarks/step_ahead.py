"""Rows of `aot` for the training steps of `bench`, and for their blocks alone, on one device."""

import ast
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bljust_jax import recipes
from bljust_jax.benchmarks.chips import CHIPS, ctc_implementation, devices
from bljust_jax.benchmarks.step import RATE, VOCAB_SIZE, Shape, make_batch, make_config
from bljust_jax.common.errors import UserError
from bljust_jax.models.encoders import conformer
from bljust_jax.monitoring import flops
from bljust_jax.parallel.mesh import batch_sharding, lay_out
from bljust_jax.train.system import jit_train_step, make_system, seed_of

SHAPE = Shape(64, 16, 512, 17)


class StepRow(NamedTuple):
    """A step of `bench` at a shape in bfloat16, with config fields as of `make_config`; `phase` ""
    is the blocks of the encoder alone, forward and backward, on `seconds` of frames."""

    title: str
    phase: str
    fields: tuple[tuple[str, Any], ...] = ()
    shape: Shape = SHAPE
    chips: str = "1 x H200"

    @property
    def name(self) -> str:
        return f"{self.title} on {self.chips}"


class Lowered(NamedTuple):
    """A lowered program and the figures that it is listed with."""

    lowered: Any
    mesh: jax.sharding.Mesh
    parameters: int
    rows: dict[str, str]  # {stream: "rows x seconds"}
    audio: float  # seconds per device
    flops: float  # of the encoder per device: forward 1, backward 2


SUPERVISED = (("method", "supervised"), ("model__subsampling", "parakeet"))
# rotary positions, and separable convolutions of 256 channels by 8
FAST = (("model__positions", "rope"), ("model__subsampling", "parakeet"), ("model__channels", 256))
CUDNN = (("model__attention", "cudnn"),)
STEP_ROWS = (
    StepRow("CTC step", "supervised", SUPERVISED),
    StepRow("joint step", "joint"),
    StepRow("CTC step + cudnn", "supervised", SUPERVISED + CUDNN),
    StepRow("joint step + cudnn", "joint", CUDNN),
    StepRow("CTC step + rope + fast + cudnn", "supervised", SUPERVISED + FAST + CUDNN),
    StepRow("joint step + rope + fast + cudnn", "joint", FAST + CUDNN),
    StepRow("blocks", ""),
)


def lower(row: StepRow, fields: dict[str, Any]) -> Lowered:
    """The program of a row, with more config fields, e.g. {"model.remat": "dots"}."""
    chips = CHIPS[row.chips]
    config = make_config(row.shape, "bfloat16", **dict(row.fields))
    config.ctc.implementation = ctc_implementation(chips)
    set_fields(config, fields)
    mesh = lay_out((1, 1, 1, 1), devices(chips)[:1])
    return lower_phase(row, config, mesh) if row.phase else lower_blocks(row, config, mesh)


def set_fields(config: Any, fields: dict[str, Any]) -> None:
    """Set fields by their dotted names; UserError for one that the config lacks."""
    for path, value in fields.items():
        *groups, name = path.split(".")
        node = config
        for group in groups:
            node = node.get(group, {})
        if name not in node:
            raise UserError(f"--set {path}: no such config field")
        node[name] = value


def parse_fields(texts: list[str]) -> dict[str, Any]:
    """{"a.b": value} of texts "a.b=value"; UserError for others."""
    found = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: want FIELD=VALUE, e.g. model.remat=dots")
        try:
            found[path] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[path] = value
    return found


def lower_phase(row: StepRow, config: Any, mesh: jax.sharding.Mesh) -> Lowered:
    """The step of the row's phase."""
    facts = recipes.Facts({"labelled": VOCAB_SIZE}, {"labelled": 1000, "unlabelled": 1000})
    recipe = recipes.load(config.recipe)(config, facts)
    phase = next(p for p in recipe.phases if p.name == row.phase)
    system = make_system(config, recipe, mesh)
    streams = sorted({s for o in recipe.active(phase) for s in o.streams})
    batch = {name: make_batch(row.shape)[name] for name in streams}
    with jax.set_mesh(mesh):
        step = jit_train_step(config, system, (phase,))
        lowered = step.lower(system.state, place(batch, mesh), seed_of(config))
    sizes = {s: rows["audio"].shape for s, rows in batch.items()}
    compute = dict(flops.FRESH)
    flops.count(compute, recipe, phase, {s: (b, n / RATE) for s, (b, n) in sizes.items()})
    return Lowered(
        lowered,
        mesh,
        sum(x.size for x in jax.tree.leaves(system.state.params)),
        {s: f"{b} x {n / RATE:g} s" for s, (b, n) in sizes.items()},
        3600 * compute["audio_hours"],
        compute["flops"],
    )


class NoFrontEnd:
    """A front end that returns its inputs."""

    @staticmethod
    def apply(variables: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
        del variables
        return x, lengths


class Blocks(conformer.Conformer):
    """The blocks of a Conformer alone, on latents `[B, T, D]`."""

    frontend = property(lambda self: NoFrontEnd)


def lower_blocks(row: StepRow, config: Any, mesh: jax.sharding.Mesh) -> Lowered:
    """Forward and backward pass of the blocks on latents at the frame rate of the config."""
    b, seconds, *_ = row.shape
    function, operands = blocks_of(config, row.shape)
    with jax.set_mesh(mesh):
        lowered = jax.jit(function).lower(*place(operands, mesh))
    whole, features = conformer.make_model(config), seconds * RATE // config.features.hop
    forward = whole.flops(features) - whole.flops(features, depth=0)
    return Lowered(
        lowered,
        mesh,
        sum(x.size for x in jax.tree.leaves(operands[0])),
        {"latents": f"{b} x {seconds} s"},
        float(b * seconds),
        3 * b * forward,
    )


def blocks_of(config: Any, shape: Shape) -> tuple[Any, tuple]:
    """(gradient of the blocks' parameters and input, its abstract operands: parameters, latents
    [B, T, D], lengths [B], cotangent [B, T, D])."""
    whole = conformer.make_model(config)
    blocks = Blocks(**{name: getattr(whole, name) for name in whole.__dataclass_fields__})
    params = jax.eval_shape(whole.init, jax.random.key(0))[0]["blocks"]
    b, seconds, dim, _ = shape
    frames = whole.frames(seconds * RATE // config.features.hop)
    latents = jax.ShapeDtypeStruct((b, frames, dim), jnp.dtype(whole.dtype))
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)

    def loss(params, x, lengths, cotangent):
        found = blocks.apply({"frontend": {}, "blocks": params}, x, lengths, train=True)
        return jnp.sum(found[0] * cotangent)

    return jax.grad(loss, (0, 1)), (params, latents, lengths, latents)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes and types of arrays, on the device of the mesh."""
    where = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
