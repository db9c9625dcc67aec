"""Smallest grid: two methods x two draws of synthetic speech, in a minute on two cores.

    bljust compare --smoke

It checks the machinery; its error rates mean nothing.
"""


def get_grid():
    size = {"model.dim": 16, "model.heads": 2, "model.channels": 4, "model.kernel": 3}
    data = {"data.test": "", "data.buckets": (2.0,), "data.eval_batch_seconds": 32.0}
    lengths = {"phases.explore": 4.0, "phases.joint": 6.0, "phases.finetune": 6.0}
    return {
        "config": "quickstart:smoke",
        "fields": {**size, **data, **lengths, "features.n_mels": 16, "log_every": 1},
        "methods": {"supervised": {}, "bljust": {}},
        "amount": "data.labelled_fraction",
        "amounts": (0.8,),
        "draws": (0, 1),
        "seeds": (0,),
        "tflops": (0.01,),
        "references": ("supervised",),
    }
