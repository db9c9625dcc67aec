"""The fields of the recipe, its phases, penalties and optimizer, and of the run."""

import pathlib

from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field

METHODS = {
    "bljust": ("bljust", "ptft", "supervised", "weighted_sum", "alternating")
    + ("mpl", "slimipl", "noisy_student", "masked_cpc_ctc"),
    "birq": ("birq", "best_rq", "relabel", "supervised"),
    "m2asr": ("vs", "vc", "vm_uas", "vm_usa", "joint", "two_stage", "supervised"),
}
# those of recipe bljust whose lower loss is CTC with pseudo-labels, set by `config.pseudo_label`
PSEUDO = ("mpl", "slimipl", "noisy_student")
UNIT = ("step", "epoch")
BUDGET_UNIT = ("gradient", "epoch", "tflop", "minute", "hour")
WARMUP_UNIT = ("step", "share", "hour")
PACKAGE = pathlib.Path(__file__).resolve().parents[2]


def plugins(folder: str) -> tuple[str, ...]:
    """The modules of a folder of the package that have a function `build`; imports none of them, as
    they import jax."""
    files = sorted((PACKAGE / folder).glob("*.py"))
    return tuple(p.stem for p in files if "\ndef build(" in p.read_text(encoding="utf-8"))


CONFIG = {
    "recipe": Field(str, "module of bljust_jax/recipes", plugins("recipes")),
    "method": Field(str, "phase table of the recipe", METHODS),
    "encoder": Field(str, "module of models/encoders", plugins("models/encoders")),
    "ssl": Field(str, "module of objectives: the lower level", plugins("objectives")),
    "freeze": Field(tuple, "parts of the encoder whose parameters do not train"),
    "init_from": Field(str, "run, RUN@STEP, export or pretrained model to start from; empty: none"),
    "init_parts": Field(tuple, "parts taken from init_from: encoder, heads by name, or all"),
    "init_from_pickle": Field(bool, "accept pytorch_model.bin, which can run code when it is read"),
    "teacher_from": Field(str, "workdir of the finished run that labels (method relabel)"),
    "variant": Field(str, "the text after the colon of --config"),
    "seed": Field(int, "seed of parameters, data order, masks and dropout", r.SEED),
    "gradients": Field(str, "one backward pass per loss, or one for all", ("separate", "fused")),
    "accumulate": Field(int, "micro-batches per step", r.AT_LEAST_1),
    "share_forward": Field(bool, "one causal forward pass for both levels"),
    "head_scale": Field(str, "heads: own gradient, or weighted", ("plain", "penalised")),
    "ema_decay": Field(float, "decay of the averaged parameters used for inference", r.BELOW_1),
    "ema_share": Field(float, "longest average, as a share of its phase; 0: any", r.FROM_0_TO_1),
    "ema_hours": Field(float, "longest average, hours of padded audio; 0: any", r.AT_LEAST_0),
    "budget": Field(float, "length of the run, in budget_unit; 0: as configured", r.AT_LEAST_0),
    "budget_unit": Field(str, "gradients of the encoder, epochs, or a time", BUDGET_UNIT),
    "eval_every": Field(int, "steps between evaluations of dev", r.AT_LEAST_1),
    "save_every": Field(int, "steps between checkpoints", r.AT_LEAST_1),
    "save_minutes": Field(float, "minutes after which a checkpoint is due; 0: off", r.AT_LEAST_0),
    "keep": Field(int, "number of newest checkpoints that are kept", r.AT_LEAST_1),
    "keep_every": Field(int, "checkpoints at its multiples are kept; 0: none", r.AT_LEAST_0),
    "on_full_disk": Field(str, "stop, or go on without the checkpoint", ("stop", "warn")),
    "log_every": Field(int, "steps per row of metrics.jsonl", r.AT_LEAST_1),
    "max_skipped": Field(int, "consecutive non-finite steps that end the run", r.AT_LEAST_1),
    "samples": Field(int, "reference and hypothesis pairs shown per evaluation", r.AT_LEAST_0),
    "compile_cache": Field(str, "folder of compiled programs; empty: none"),
    "compile_threads": Field(int, "programs compiled at once; 0: automatic", r.AT_LEAST_0),
}

PHASES = {
    "unit": Field(str, "unit of the lengths", UNIT),
    "explore": Field(float, "length of the phase of the lower level alone", r.AT_LEAST_0),
    "joint": Field(float, "length of the phase of all levels", r.AT_LEAST_0),
    "finetune": Field(float, "length of the last phase, labelled losses alone", r.AT_LEAST_0),
    "pretrain": Field(float, "length of self-supervised pre-training", r.AT_LEAST_0),
    "supervised": Field(float, "length of method supervised, or before joint", r.AT_LEAST_0),
    "explore_when": Field(str, "before, or spread over joint", ("once", "every_epoch")),
    "turn": Field(int, "steps per turn of method alternating", r.AT_LEAST_1),
}

LR = {"heads": Field(float, "learning rate of heads over that of the encoder", r.ABOVE_0)}
LR_PHASE = {
    "shape": Field(str, "schedule of the phase", ("constant", "cosine", "linear", "hold")),
    "peak": Field(float, "highest learning rate of the encoder", r.AT_LEAST_0),
    "warmup": Field(float, "length of the rise from 0 to the peak", r.AT_LEAST_0),
    "warmup_unit": Field(str, "steps, share of the phase, or hours of padded audio", WARMUP_UNIT),
    "moments": Field(str, "optimizer state at the start of the phase", ("keep", "reset")),
}

OPTIM = {
    "clip": Field(float, "largest gradient norm per group", r.ABOVE_0),
    "weight_decay": Field(float, "AdamW's weight decay", r.AT_LEAST_0),
    "b1": Field(float, "Adam's decay of the first moment", r.BELOW_1),
    "b2": Field(float, "Adam's decay of the second moment", r.BELOW_1),
}

TASK_PENALTY = {
    "start": Field(float, "penalty at the start of the joint phase", r.AT_LEAST_0),
    "slope": Field(float, "increase of the penalty per unit", r.AT_LEAST_0),
    "cap": Field(float, "largest penalty", r.AT_LEAST_0),
}
PENALTY = TASK_PENALTY | {
    "per": Field(str, "unit of the slope", UNIT),
    "constant": Field(float, "fixed weight of methods weighted_sum and joint", r.AT_LEAST_0),
}

MOO = {
    "method": Field(str, "how a level of several losses is weighed", ("modo", "mgda")),
    "rate": Field(float, "step size of the weights", r.AT_LEAST_0),
    "relative": Field(bool, "divide the rate by a bound of the largest eigenvalue"),
    "rho": Field(float, "regularisation towards equal weights", r.AT_LEAST_0),
    "warmup": Field(int, "steps of equal weights", r.AT_LEAST_0),
    "normalise": Field(str, "scale gradients of a level to their mean norm", ("none", "norm")),
    "layers": Field(str, "layers whose gradients decide the weights", ("all", "conflicting")),
    "threshold": Field(float, "mean cosine below which a layer conflicts", r.COSINE),
    "every": Field(int, "steps between selections of layers", r.AT_LEAST_1),
    "starved_weight": Field(float, "weight of an objective below which to warn", r.FROM_0_TO_1),
    "starved_rows": Field(int, "rows of metrics.jsonl below it before the warning", r.AT_LEAST_1),
    "starved_stop": Field(bool, "end the run instead of a warning"),
}

STOP = {
    "patience": Field(int, "evaluations without a better score; 0: never", r.AT_LEAST_0),
    "perfect": Field(int, "evaluations in a row without an error; 0: never", r.AT_LEAST_0),
}

COLLAPSE = {
    "share": Field(float, "share of the largest perplexity below which to warn", r.FROM_0_TO_1),
    "rows": Field(int, "rows of metrics.jsonl below it before the warning", r.AT_LEAST_1),
    "stop": Field(bool, "end the run instead of a warning"),
}

MESH = {
    "dcn": Field(int, "slices of a pod, or groups of hosts on a slow network", r.AT_LEAST_1),
    "data": Field(int, "devices that split the batch", r.DEVICES),
    "fsdp": Field(int, "devices that split batch, parameters and optimizer state", r.AT_LEAST_1),
    "tensor": Field(int, "devices of one host that split heads and hidden units", r.AT_LEAST_1),
}
