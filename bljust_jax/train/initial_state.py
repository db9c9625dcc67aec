"""Initial train state: random initialisation, then pretrained weights and data statistics."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bljust_jax.bilevel import step
from bljust_jax.bilevel.types import Recipe, TrainState, Weights
from bljust_jax.common.errors import UserError
from bljust_jax.data.corpus import Corpus
from bljust_jax.data.streams import LABELLED
from bljust_jax.inference import trained_run


def make_state(
    config: Any, recipe: Recipe, optimizer: Any, corpus: Corpus
) -> tuple[TrainState, list[str]]:
    """(state at step 0, log lines): random initialisation, replaced by pretrained weights
    (`config.init_from`), encoders of finished runs (`Recipe.borrow`) and statistics of the data."""
    state, lines = step.compute_init_state(recipe, optimizer, config.seed), []
    if config.init_from:
        from bljust_jax.export import pretrained

        units = corpus.tokenizers.get(LABELLED)
        params, stats, lines = pretrained.load(
            config.init_from, state.params, state.stats, config, units
        )
        state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params), stats=stats)
    for name, workdir in recipe.borrow.items():
        try:
            opened = trained_run.load_trained_run(pathlib.Path(workdir))
        except UserError as error:
            raise UserError(f"config.{name}_from: {error}") from error
        check_same_encoder(config, opened, name)
        state.frozen[name] = encoder_weights(opened)
        lines.append(f"{name}: the encoder of {workdir}, checkpoint {opened.step}")
    measured = recipe.statistics(corpus.unlabelled_batches(20))
    return state._replace(stats=state.stats | measured), lines


# Fields of config.model that change training or speed, not the function of an encoder.
TRAINING_ONLY = {"dropout", "layerdrop", "feature_grad_scale", "dtype", "remat", "scan_unroll"}


def check_same_encoder(config: Any, opened: trained_run.TrainedRun, name: str) -> None:
    """UserError if the encoder of the run, or its features, differ from those of the config."""
    ours, theirs = (_function(json.loads(c.to_json())) for c in (config, opened.config))
    differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if differing:
        raise UserError(
            f"{opened.workdir} has another encoder than the {name} of this config: give "
            f"both the same {', '.join(f'config.{k}' for k in differing)}"
        )


def _function(config: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of the fields that determine the function of an encoder."""
    fields = {"encoder": config["encoder"], "data.sample_rate": config["data"]["sample_rate"]}
    for group in ("features", "model"):
        fields |= {f"{group}.{k}": v for k, v in config[group].items() if k not in TRAINING_ONLY}
    return fields


def encoder_weights(opened: trained_run.TrainedRun) -> Weights:
    """The encoder parameters and statistics of a run."""
    params, stats = opened.weights
    found = Weights({"encoder": params["encoder"]}, stats)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), found)
