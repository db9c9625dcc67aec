"""Your own recordings: JSONL manifests in, a trained recognizer and its word error rate out.

    python -m bljust_jax.main --config=configs/manifest.py \
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl

Method: BL-JUST, configs/librispeech.py. A manifest has one JSON object per line: `audio_filepath`
(relative to the manifest), `duration` in seconds, `text`, and optionally `offset`, `speaker`,
`lang`, `id`. Lines without `text` serve the lower level; more such audio:
`--config.data.unlabelled=more.jsonl`.

Variants: `sentences` (the default: a few hours of read speech, 1 M parameters), `digits` (isolated
words: words of one speaker are joined into strings for training), every method (`bljust`, `ptft`,
`supervised`, `weighted_sum`, `alternating`, `mpl`, `slimipl`, `noisy_student`, `masked_cpc_ctc`,
`hybrid`; docs/method.md has sources) and encoder (`parakeet`, `lstm`, `gru`), for example
`configs/manifest.py:digits,ptft`.

Lengths of batches follow from the durations of data.train; `digits` has lengths of its own, which
bound its strings. `--config.data.buckets=3,5,8` sets others.

Cost: `digits` 9.6 TFLOP, 9 to 13 minutes on two CPU cores; `sentences` a quarter of an hour.
Expected: `digits` on 40 Arabic words of 18 speakers, dev WER of 6 other speakers (one seed):
`bljust` 11.7 %, `ptft` 12.6 %, `supervised` 20.6 % (results/README.md).
"""

from configs import defaults, variants


def digits(c):
    """Isolated words of many speakers."""
    variants.tiny_model(c)
    variants.join_words(c)
    if c.encoder == "cnn_rnn":
        c.cpc.chunk = (1.0, 0.5, 0.5)  # several windows in a string of 4 s
    c.penalty.cap = 0.3
    variants.set_all_lr(c, 2e-3, 100)
    variants.steps(c, 2400)
    c.ema_decay = 0.99
    c.update(eval_every=300, save_every=300, log_every=20)


def sentences(c):
    """Read sentences of 1-10 s, a few hours of them: a quarter of an hour on two CPU cores."""
    variants.tiny_model(c)
    # lengths with the least cost of padding and compiling, up to data.max_seconds
    c.data.buckets = ("auto",)
    c.data.program_hours = 1.0  # measured on two CPU cores
    c.data.batch_seconds = 40.0
    c.data.unlabelled_batch_seconds = 40.0
    c.data.speed = (0.9, 1.1)
    c.data.noise_snr = (10.0, 40.0)
    c.penalty.cap = 0.3
    variants.set_all_lr(c, 2e-3, 200)
    variants.steps(c, 3000)
    c.ema_decay = 0.995
    c.update(eval_every=300, save_every=300, log_every=20)


def get_config(arg=None):
    c = defaults.base()
    sentences(c)
    return variants.apply_variants(c, arg, {"digits": digits, "sentences": sentences})
