"""Your own recordings: JSONL manifests in, a recogniser and its word error rate out.

    python -m bljust_jax.main --config=configs/manifest.py \
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl

A manifest holds one JSON object a line: `audio_filepath` (relative to the manifest), `duration` in
seconds, `text`, and optionally `offset`, `speaker`, `lang`, `id`. Lines without `text` serve the
lower level: name them with
`--config.data.unlabelled=more.jsonl`.

Variants: `digits` (isolated words: strings of one speaker's words are joined on the fly for
training), `sentences` (an hour or a few of read speech, small Conformer), and each method: `ptft`,
`supervised`, `weighted_sum`,
`alternating`, for example `configs/manifest.py:digits,ptft`.
Cost: `digits` takes minutes on two CPU cores; figures in results/README.md.
"""

from configs import common, defaults


def digits(c):
    """Isolated words of many speakers."""
    common.tiny_model(c)
    common.join_words(c)
    if c.encoder == "cnn_rnn":
        c.cpc.chunk = (1.0, 0.5, 0.5)  # several windows in a string of 4 s
    c.penalty.cap = 0.3
    common.set_all_lr(c, 2e-3, 100)
    common.steps(c, 2400)
    c.ema_decay = 0.99
    c.update(eval_every=300, save_every=300, log_every=20)


def sentences(c):
    """Read sentences of 1-10 s, a few hours: a model that two CPU cores train in a quarter hour."""
    common.tiny_model(c)
    c.data.buckets = (3.0, 5.0, 8.0)
    c.data.batch_seconds = 40.0
    c.data.unlabelled_batch_seconds = 40.0
    c.data.speed = (0.9, 1.1)
    c.data.noise_snr = (10.0, 40.0)
    c.penalty.cap = 0.3
    common.set_all_lr(c, 2e-3, 200)
    common.steps(c, 3000)
    c.ema_decay = 0.995
    c.update(eval_every=300, save_every=300, log_every=20)


def get_config(arg=None):
    c = defaults.base()
    sentences(c)
    return common.apply_variants(c, arg, {"digits": digits, "sentences": sentences})
