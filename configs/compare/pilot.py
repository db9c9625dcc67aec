"""Pilot of the comparison of methods: Arabic digit strings, 2 of 18 training speakers labelled.

    bljust compare configs/compare/pilot.py --tune --jobs 2 --root ../shared/speech

Protocol: docs/evidence.md, "The pilot". Seven methods, three draws of the labelled speakers, one
seed, equal FLOPs; three trials per method on 4 speakers held back from the training data.
Data: digits:digits_ar, strings of 3-5 digits of one speaker. Training joins the digits at random;
dev strings are fixed and joined while they are read. 6 dev speakers, scored once per run.
Cost: 42 runs (docs/evidence.md).
"""

MODEL = {"model.dim": 64, "model.layers": 3, "model.channels": 16, "model.scan_unroll": 3}
DATA = {
    "data.root": "../shared/speech",
    "data.train": "digits:digits_ar/train",
    "data.dev": "digits:digits_ar/dev/strings-3-5",
    **{"data.join": (3, 5), "data.join_share": 1.0, "data.balance": 0.0},
    **{"data.buckets": (2.5, 4.0), "data.unlabelled_join": (3, 5)},
    **{"data.unlabelled_buckets": (4.0,), "data.unlabelled_join_share": 1.0},
}
# the values of configs/manifest.py:digits first: the first trial is the config as it stands
RATES = (2e-3, 1e-3, 4e-3)  # of the phases in which CTC trains the encoder
LENGTHS = ((288, 636, 840), (144, 708, 840), (576, 492, 840))  # 2,400 gradients each
SHARES = "phases.explore,phases.joint,phases.finetune"


def shares(*penalties):
    """Points of explore, joint and finetune in steps at 2,400 gradients, with each penalty: its cap
    and the slope that reaches the cap after 80 % of the joint phase."""
    return tuple(
        (*map(float, steps), cap, cap / (0.8 * steps[1])) for steps in LENGTHS for cap in penalties
    )


def together(*names):
    """Each rate for several schedules."""
    axis = ",".join(f"lr.{name}.peak" for name in names)
    return {axis: tuple((rate,) * len(names) if len(names) > 1 else rate for rate in RATES)}


SPACE = {
    "supervised": together("supervised"),
    "ptft": together("ptft_supervised"),
    "weighted_sum": together("joint", "finetune") | {"penalty.constant": (0.3, 0.1, 1.0)},
    "alternating": together("turn_ctc", "turn_ssl", "finetune") | {"phases.turn": (200, 20, 50)},
    "bljust": together("joint", "finetune")
    | {f"{SHARES},penalty.cap,penalty.slope": shares(0.3, 0.1, 1.0)},
    # start: share of the FLOPs on labels alone first; 0: that of the method
    "slimipl": together("supervised", "pseudo") | {"pseudo_label.ratio": (4, 1, 10)},
    "mpl": together("supervised", "pseudo") | {"pseudo_label.start": (0.0, 0.3, 0.6)},
}


def get_grid():
    methods = {name: {} for name in SPACE}
    return {
        "config": "manifest:digits",
        "fields": {**MODEL, **DATA, "save_every": 10**9, "log_every": 100},
        "methods": methods,
        "amount": "data.labelled_speakers",
        "amounts": (2,),
        "draws": (0, 1, 2),
        "seeds": (0,),
        "tflops": (3.2,),
        "references": ("ptft", "supervised"),
        "tune": {
            "trials": 3,
            "dev": "digits:digits_ar/train/strings-3-5",
            "held_back": 4,
            "amount": 2,
            "tflop": 3.2,
            "draw": 100,
            "space": SPACE,
        },
    }
