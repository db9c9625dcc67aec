"""Quickstart: BL-JUST on synthetic spoken commands, a fifth of them labelled.

    python -m bljust_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Method: configs/librispeech.py. Data: 1,500 short commands by eSpeak NG, 300 of them labelled; dev
and test have voices and sentences that are not in training.
Cost: 5.1 TFLOP, 3 minutes on two CPU cores.
Expected: test WER 3 to 5 % (seeds 0, 1, 2; results/README.md). This is no evidence for joint over
supervised training: with a grammar this small, CTC on the same 300 labels does as well.
"""

from configs import defaults, variants


def get_config(arg=None):
    c = defaults.base()
    variants.synthetic(c, "commands")
    variants.tiny_model(c)
    c.data.labelled_fraction = 0.2  # 300 of 1,500 utterances; the lower level reads all
    c.data.buckets = (2.0, 3.0)  # two shapes, so two compiled programs
    c.data.batch_seconds = 27.0
    c.data.unlabelled_batch_seconds = 27.0
    c.data.speed = (0.9, 1.1)
    c.penalty.cap = 0.3  # largest gamma; reached after 80 % of the joint phase
    variants.set_all_lr(c, 2e-3, 50)
    variants.steps(c, 1200)  # encoder gradients
    c.ema_decay = 0.995
    c.update(eval_every=100, save_every=100, log_every=20)
    return variants.apply_variants(c, arg, {})
