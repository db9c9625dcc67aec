"""The fields of the losses: CTC, CPC, BEST-RQ, wav2vec 2.0 and BiRQ."""

from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field

IMPLEMENTATIONS = ("auto", "scan", "one_scan", "pallas_tpu", "pallas_gpu")
CTC = {
    "reduction": Field(str, "unit that the loss is averaged over", ("label", "utterance")),
    "context": Field(str, "frames that the encoder uses; causal: no future", ("full", "causal")),
    "implementation": Field(str, "CTC kernel; auto: the fastest of the device", IMPLEMENTATIONS),
}

CPC = {
    "steps": Field(int, "predicted frames, each by a linear map of its own", r.AT_LEAST_1),
    "first_step": Field(int, "distance of the first predicted frame", r.AT_LEAST_1),
    "width": Field(int, "width of projected latents and predictions", r.AT_LEAST_1),
    "temperature": Field(float, "divisor of the cosine", r.ABOVE_0),
    "negatives": Field(int, "negative frames of the same utterance; 0: all", r.AT_LEAST_0),
    "context": Field(str, "one causal pass, or windows apart", ("causal", "chunked")),
    "chunk": Field(tuple, "windows of context=chunked", r.CHUNK),
    "target_gradient": Field(bool, "the loss has a gradient into its targets"),
}

BEST_RQ = {
    "stack": Field(int, "feature frames per label: the encoder's subsampling factor", r.AT_LEAST_1),
    "mask_prob": Field(float, "probability that a span starts at a label frame", r.ABOVE_0_TO_1),
    "mask_length": Field(int, "label frames per masked span", r.AT_LEAST_1),
    "noise_std": Field(float, "standard deviation of the noise in masked frames", r.AT_LEAST_0),
    "codes": Field(int, "codes per codebook", r.AT_LEAST_1),
    "code_dim": Field(int, "width of a code", r.AT_LEAST_1),
    "codebooks": Field(int, "codebooks; the loss is their mean", r.AT_LEAST_1),
}

GUMBEL = {
    "tau_start": Field(float, "temperature at step 0", r.ABOVE_0),
    "tau_end": Field(float, "lowest temperature", r.ABOVE_0),
    "tau_decay": Field(float, "tau = max(tau_end, tau_start * tau_decay^step)", r.ABOVE_0),
}

WAV2VEC2 = {
    "mask_prob": Field(float, "share of frames in masked spans, before overlaps", r.ABOVE_0_TO_1),
    "mask_length": Field(int, "frames per masked span", r.AT_LEAST_1),
    "negatives": Field(int, "negative masked frames of the same utterance", r.AT_LEAST_1),
    "temperature": Field(float, "divisor of the cosine", r.ABOVE_0),
    "diversity": Field(float, "weight of the diversity loss", r.AT_LEAST_0),
    "feature_penalty": Field(float, "weight of the features' mean square", r.AT_LEAST_0),
    "groups": Field(int, "codebooks", r.AT_LEAST_1),
    "codes": Field(int, "codes per codebook", r.AT_LEAST_1),
    "code_dim": Field(int, "width of the codevectors of all groups together", r.AT_LEAST_1),
    "width": Field(int, "width of projected targets and predictions", r.AT_LEAST_1),
    **GUMBEL,
}

BIRQ = {
    "enhanced_weight": Field(float, "w1, weight of the upper level", r.AT_LEAST_0),
    "anchor_weight": Field(float, "w2, weight of the lower level", r.AT_LEAST_0),
    "layer": Field(int, "k, block whose output is labelled; 0: 0.7 of the blocks", r.AT_LEAST_0),
    "label_gradient": Field(bool, "the enhanced loss has a gradient through its labels"),
    "label_entropy": Field(float, "beta, weight of the entropy of the mean label", r.AT_LEAST_0),
    "label_dropout": Field(bool, "dropout in the pass that makes labels"),
    "normalise": Field(str, "scale block k over time, or per frame", ("feature", "frame")),
    "score": Field(str, "score of an output and a code", ("cosine", "distance")),
    "sharpness": Field(float, "factor of the score, before noise", r.ABOVE_0),
    "noise": Field(bool, "Gumbel noise on the scores"),
    "hard": Field(bool, "one-hot labels, straight-through gradient"),
    "head": Field(str, "one softmax head for both losses, or one each", ("shared", "separate")),
    "codebook": Field(str, "one codebook for both labels, or one each", ("shared", "separate")),
    **GUMBEL,
}
