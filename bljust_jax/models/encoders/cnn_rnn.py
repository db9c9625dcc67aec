"""The CNN-RNN of LSTM-JUST on normalised log-mel features, those of the Conformer."""

from __future__ import annotations

from functools import partial
from typing import Any

from bljust_jax.models import encoders
from bljust_jax.models.cnn_rnn import CnnRnn
from bljust_jax.models.encoders import Encoder, conformer


def build(config: Any) -> Encoder:
    fields = {"n_mels": config.features.n_mels, **config.model}
    model = encoders.make_model(CnnRnn, config, fields)

    def init(rng):
        params, stats = model.init(rng)
        return params, stats | {"features": conformer.unit_statistics(config)}

    def apply(params, x, lengths, *, hide=None, **how):
        if hide is not None:
            raise ValueError("the CNN-RNN masks nothing itself: mask its features")
        return model.apply(params, x, lengths, **how)

    return Encoder(
        dim=model.dim,
        latent_dim=model.latent_dim,
        blocks=model.rnn_layers,
        init=init,
        features=conformer.make_features(config),
        apply=apply,
        frames=lambda samples: model.frames(conformer.feature_frames(config, samples)),
        flops=lambda samples, upto=None: model.flops(
            conformer.feature_frames(config, samples), upto
        ),
        statistics=partial(conformer.feature_statistics, config),
        log_mel=conformer.make_log_mel(config),
    )
