"""The fields of encoders, decoder and input features."""

from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field

FEATURES = {
    "frontend": Field(str, "log-mel features; nemo: as NVIDIA's Parakeet", ("log_mel", "nemo")),
    "n_mels": Field(int, "mel bands", r.AT_LEAST_1),
    "window": Field(int, "samples per window", r.AT_LEAST_1),
    "hop": Field(int, "samples between windows", r.AT_LEAST_1),
    "n_fft": Field(int, "points of the Fourier transform", r.AT_LEAST_1),
}

SPECAUGMENT = {
    "freq_masks": Field(int, "frequency masks per utterance", r.AT_LEAST_0),
    "freq_width": Field(int, "mel bands per frequency mask, at most", r.AT_LEAST_0),
    "time_masks": Field(int, "time masks per utterance", r.AT_LEAST_0),
    "time_width": Field(int, "frames per time mask, at most", r.AT_LEAST_0),
    "max_time_share": Field(float, "share of the utterance per time mask, at most", r.FROM_0_TO_1),
}

# CTC's augmentation of wav2vec 2.0.
MASK = {
    "time_prob": Field(float, "share of frames masked, before overlaps", r.FROM_0_TO_1),
    "time_length": Field(int, "frames per masked span", r.AT_LEAST_1),
    "channel_prob": Field(float, "share of channels masked, before overlaps", r.FROM_0_TO_1),
    "channel_length": Field(int, "channels per masked span", r.AT_LEAST_1),
}

ALL_ENCODERS = {
    "heads": Field(int, "attention heads", r.AT_LEAST_1),
    "dropout": Field(float, "dropout rate", r.BELOW_1),
    "dtype": Field(str, "dtype of the arithmetic", ("float32", "bfloat16", "float64")),
    "scan_unroll": Field(int, "layers per iteration of the scan over layers", r.AT_LEAST_1),
}
TRANSFORMERS = {
    "dim": Field(int, "width of the blocks", r.AT_LEAST_1),
    "layers": Field(int, "number of blocks", r.AT_LEAST_1),
    "attention": Field(str, "form that computes attention", ("auto", "xla", "cudnn", "splash")),
    "remat": Field(
        str, "recomputation in the backward pass", ("auto", "none", "names", "dots", "full")
    ),
}
CONFORMER = {
    "kernel": Field(int, "frames of the depthwise convolution, odd", r.AT_LEAST_1),
    "channels": Field(int, "channels of the (sub)sampling or stem convolutions", r.AT_LEAST_1),
    "subsampling": Field(str, "kind of the subsampling convolutions", ("conv2d", "parakeet")),
    "subsampling_factor": Field(int, "frames per output frame; 0: the kind's", (0, 4, 8)),
    "norm": Field(str, "norm of the convolution module", ("layer", "batch")),
    "window": Field(int, "frames that attention covers; 0: all", r.WINDOW),
    "positions": Field(str, "positions of attention", ("relative", "rope")),
    "ff_mult": Field(int, "feed-forward width over dim", r.AT_LEAST_1),
}
WAV2VEC2 = {
    "normalise": Field(bool, "scale the waveform to mean 0 and variance 1 per utterance"),
    "ff_dim": Field(int, "feed-forward width", r.AT_LEAST_1),
    "conv_dim": Field(tuple, "channels of each waveform convolution", r.WHOLE_NUMBERS),
    "conv_kernel": Field(tuple, "samples of each waveform convolution", r.WHOLE_NUMBERS),
    "conv_stride": Field(tuple, "stride of each waveform convolution", r.WHOLE_NUMBERS),
    "conv_bias": Field(bool, "waveform convolutions have a bias"),
    "feat_norm": Field(str, "norm of the waveform convolutions", ("group", "layer")),
    "stable_layer_norm": Field(bool, "blocks normalise their input (pre-norm)"),
    "pos_kernel": Field(int, "frames of the positional convolution", r.AT_LEAST_1),
    "pos_groups": Field(int, "groups of the positional convolution", r.AT_LEAST_1),
    "layerdrop": Field(float, "share of blocks skipped per training step", r.BELOW_1),
    "feature_grad_scale": Field(float, "gradient factor of waveform convolutions", r.AT_LEAST_0),
    "hf_compat": Field(bool, "group norm counts padded frames, as transformers' does"),
}
CNN_RNN = {
    "kind": Field(str, "recurrent cell", ("lstm", "gru")),
    "cnn_layers": Field(int, "residual convolution layers", r.AT_LEAST_0),
    "rnn_layers": Field(int, "bidirectional recurrent layers", r.AT_LEAST_1),
    "latent_dim": Field(int, "width between convolutions and recurrent layers", r.AT_LEAST_1),
    "units": Field(int, "recurrent units per direction", r.AT_LEAST_1),
    "proj": Field(int, "width of the layer before the head; 0: none", r.AT_LEAST_0),
}
MODEL = ALL_ENCODERS | TRANSFORMERS | CONFORMER | WAV2VEC2 | CNN_RNN

# The head of speech translation; all but `kind` are of the attention decoder.
DECODER = {
    "kind": Field(str, "attention decoder, or linear + softmax", ("attention", "linear")),
    "dim": Field(int, "width of the blocks", r.AT_LEAST_1),
    "layers": Field(int, "number of blocks", r.AT_LEAST_1),
    "heads": Field(int, "attention heads", r.AT_LEAST_1),
    "ff_mult": Field(int, "feed-forward width over dim", r.AT_LEAST_1),
    "dropout": Field(float, "dropout rate", r.BELOW_1),
    "smoothing": Field(float, "label smoothing", r.BELOW_1),
    "beam": Field(int, "beam width of evaluate", r.AT_LEAST_1),
    "alpha": Field(float, "exponent of length normalisation", r.AT_LEAST_0),
    "max_ratio": Field(float, "tokens per encoder frame, at most", r.AT_LEAST_0),
    "max_extra": Field(int, "tokens beyond that, at most", r.AT_LEAST_0),
}
