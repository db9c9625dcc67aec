"""Initial train state: random initialisation, then pretrained weights and data statistics."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.bilevel import step
from bljust_jax.bilevel.types import Recipe, TrainState, Weights
from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Corpus
from bljust_jax.data.streams import UNLABELLED
from bljust_jax.inference import trained_run
from bljust_jax.objectives import is_pretrained
from bljust_jax.train import init_from


def make_state(
    config: Any, recipe: Recipe, optimizer: Any, corpus: Corpus
) -> tuple[TrainState, list[str]]:
    """(state at step 0, log lines): random initialisation, replaced by parts of another run or
    model (`config.init_from`), encoders of finished runs (`Recipe.borrow`) and statistics of the
    data."""
    state, lines = step.compute_init_state(recipe, optimizer, config.seed), []
    taken: Any = ()
    if config.init_from:
        source = init_from.open_source(config, state)
        state, lines = init_from.take(source, config, recipe, corpus.tokenizers, state)
        taken = source.stats if is_pretrained(config, "encoder") else ()
    for name, workdir in recipe.borrow.items():
        try:
            opened = trained_run.load_trained_run(pathlib.Path(workdir))
        except UserError as error:
            raise UserError(f"config.{name}_from: {error}") from error
        check_same_encoder(config, opened, name)
        state.frozen[name] = encoder_weights(opened)
        lines.append(f"{name}: the encoder of {workdir}, checkpoint {opened.step}")
    longest = corpus.plans[UNLABELLED].buckets[-1]
    samples = round(longest.seconds * config.data.sample_rate)
    batches = in_one_shape(corpus.unlabelled_batches(20), longest.batch_size, samples)
    measured = recipe.statistics(batches)
    new = {name: value for name, value in measured.items() if name not in taken}
    return state._replace(stats=state.stats | new), lines


def start_anew(
    config: Any, recipe: Recipe, optimizer: Any, tokenizers: Mapping[str, Any], state: TrainState
) -> TrainState:
    """The state of a phase that starts anew (`Phase.anew`): all teachers are the EMA parameters,
    which trained so far; parameters, their EMA and optimizer state are drawn by another seed, or
    come from `config.init_from` again. Step, feature statistics and other frozen arrays stay."""
    config = config.copy_and_resolve_references()
    config.seed = (config.seed + int(state.step)) % 2**31
    fresh = step.compute_init_state(recipe, optimizer, config.seed)
    if config.init_from:
        source = init_from.open_source(config, fresh)
        fresh, _ = init_from.take(source, config, recipe, tokenizers, fresh)
    taught = {name: state.ema[teacher.part] for name, teacher in recipe.teachers.items()}
    stats = fresh.stats | {k: v for k, v in state.stats.items() if k != "encoder"}
    return fresh._replace(step=state.step, frozen={**state.frozen, **taught}, stats=stats)


def in_one_shape(
    batches: Iterable[dict[str, np.ndarray]], rows: int, samples: int
) -> Iterator[dict[str, np.ndarray]]:
    """The audio of all batches in batches [rows, samples] that one program serves, with silence
    after each row and rows of length 0 at the end of a batch. No batch has longer rows."""
    for batch in batches:
        count, length = batch["audio"].shape
        for start in range(0, count, rows):
            given = min(rows, count - start)
            part = {k: batch[k][start : start + given] for k in ("audio", "audio_lengths")}
            audio = np.pad(part["audio"], ((0, rows - given), (0, samples - length)))
            yield {
                "audio": audio,
                "audio_lengths": np.pad(part["audio_lengths"], (0, rows - given)),
            }


def check_same_encoder(config: Any, opened: trained_run.TrainedRun, name: str) -> None:
    """UserError if the encoder of the run, or its features, differ from those of the config."""
    theirs = json.loads(opened.config.to_json())
    if found := init_from.differing_fields(config, theirs):
        raise UserError(
            f"{opened.workdir} has another encoder than the {name} of this config: give "
            f"both the same {', '.join(f'config.{field}' for field, _, _ in found)}"
        )


def encoder_weights(opened: trained_run.TrainedRun) -> Weights:
    """The encoder parameters and statistics of a run."""
    params, stats = opened.weights
    found = Weights({"encoder": params["encoder"]}, stats)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), found)
