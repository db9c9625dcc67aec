"""The first run: a recogniser learns spoken commands from one fifth of the labels and all of the
audio.

    python -m bljust_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Data: 1,500 short commands spoken by eSpeak NG, 300 of them labelled; dev and test hold voices and
sentences that training never heard. It shows the machinery at work. It is no evidence for joint
over supervised training: with a grammar this small, CTC on the same 300 labels does as well.
Cost: a few minutes on two CPU cores. Expected: see results/README.md.
"""

from configs import common, defaults


def get_config(arg=None):
    c = defaults.base()
    common.synthetic(c, "commands")
    common.tiny_model(c)
    c.data.labelled_fraction = 0.2  # 300 of 1,500 utterances; the lower level hears them all
    c.data.buckets = (2.0, 3.0)  # two shapes: two programs a phase
    c.data.batch_seconds = 27.0
    c.data.unlabelled_batch_seconds = 27.0
    c.data.speed = (0.9, 1.1)
    c.penalty.cap = 0.3
    common.set_all_lr(c, 2e-3, 50)
    common.steps(c, 1200)  # encoder gradients
    c.ema_decay = 0.995
    c.update(eval_every=100, save_every=100, log_every=20)
    return common.apply_variants(c, arg, {})
