"""The fields of a config with their defaults: one comment a field."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """BL-JUST's defaults; where the papers are silent, a field that can be set (see
    configs/librispeech.py)."""
    c = ConfigDict()
    c.recipe = "bljust"  # bljust_jax/recipes/<recipe>.py
    c.method = "bljust"  # bljust | ptft | supervised | weighted_sum | alternating, at equal compute
    c.encoder = "conformer"  # bljust_jax/encoders/<encoder>.py; its fields are c.model
    c.ssl = "cpc"  # bljust_jax/objectives/<ssl>.py, the lower level; its fields are c.<ssl>
    # parts of the encoder whose parameters keep their first values, such as ("frontend",); the
    # moments of a batch norm move all the same
    c.freeze = ()
    # a pretrained model to start from: a folder or file that transformers reads
    c.init_from = ""
    c.init_from_pickle = False  # accept a pytorch_model.bin, which can run code when it is read
    c.variant = ""  # the text after the colon of --config
    c.seed = 0  # seeds everything: parameters, data order, masks, dropout

    c.data = ConfigDict()
    # URI of the labelled audio: *.jsonl, librispeech:ROOT/SPLIT, tedlium:ROOT/SPLIT,
    # covost:ROOT/SRC_TGT/SPLIT, ami:ROOT/ihm/SPLIT (or sdm), yodas:ROOT/en000[/SHARD],
    # tfds:DIR/SPLIT (made by bljust_jax.prepare), synthetic:NAME/SPLIT; join with +
    c.data.train = ""
    c.data.unlabelled = ""  # URI of the lower level's audio; "" = all audio that data.train names
    c.data.dev = ""  # URI: evaluated while training, chooses the best weights
    c.data.test = ""  # URI: evaluated once, at the end
    # where a system has several tasks: {name of a labelled stream, as "asr/en": stream(...)}, each
    # with a head and a tokenizer of its own; data.train, dev and test are then empty
    c.data.streams = ConfigDict()
    c.data.root = ""  # audio outside this folder is refused; "" = the manifest's folder
    c.data.sample_rate = 16000  # Hz; other rates are resampled
    c.data.text = ConfigDict()
    c.data.text.units = "characters"  # or SentencePiece's "unigram", "bpe", learned from data.train
    c.data.text.vocab_size = 500  # pieces, with unigram and bpe
    c.data.text.model = ""  # a SentencePiece .model to use instead of learning one
    c.data.text.sha256 = ""  # of the SentencePiece model; a run writes it into its config.json
    # in this order: lower, upper, punctuation (a space), alef (one form), diacritics (dropped)
    c.data.text.normalise = ("lower",)
    c.data.labelled_fraction = 1.0  # share of the utterances of data.train that keep their labels
    c.data.labelled_speakers = 0  # speakers of data.train that keep their labels; 0 = all
    c.data.overfit = 0  # train and score on so many utterances of data.train alone; 0 = never
    # strings of so many utterances of one speaker, (least, most); (1, 1) = never
    c.data.join = (1, 1)
    c.data.join_share = 0.0  # share of items that are such strings
    # share of draws made uniform over distinct texts, so that rare words are seen
    c.data.balance = 0.0
    c.data.buckets = (5.0, 10.0, 17.0)  # seconds: batches are padded to one of these lengths
    c.data.batch_seconds = 160.0  # padded audio a batch, labelled stream; of several, on average
    # T of the shares that several labelled streams have of that audio, hours^(1/T): 1 = by size,
    # 5 = more even, 0 = equal
    c.data.temperature = 0.0
    c.data.rows_multiple = 1  # rows of a training batch are a multiple of it: 2 for MoDo's halves
    # room for labels in a batch; denser utterances go to a longer bucket
    c.data.labels_per_second = 25.0
    c.data.speed = (1.0, 1.0)  # speed perturbation, uniform between these factors
    c.data.noise_snr = ()  # dB (low, high) of added noise; () = none
    c.data.min_seconds = 0.1  # shorter utterances are left out, and counted
    c.data.max_seconds = 40.0  # longer ones too, of dev and test as well
    # seconds; () = data.buckets; one entry = crop or join to one shape
    c.data.unlabelled_buckets = ()
    c.data.unlabelled_batch_seconds = 160.0  # padded audio a batch, unlabelled stream
    # T of the shares that languages have of an epoch of it: 1 = the audio as it is, once, 5 = more
    # even, 0 = equal; utterances are repeated or left out, in turns
    c.data.unlabelled_temperature = 1.0
    c.data.unlabelled_join = (1, 1)  # as data.join, for the unlabelled stream
    c.data.unlabelled_join_share = 0.0  # as data.join_share
    c.data.eval_batch_seconds = 160.0  # padded audio a batch in evaluation
    c.data.num_threads = 2  # decoding threads; they do not change the data
    c.data.prefetch = 8  # batches read ahead
    c.data.timeout = 300.0  # seconds without a batch after which the run ends, with exit code 69
    # give up when a larger share of a split's audio cannot be decoded; below it, such utterances
    # are left out and listed in quarantine.jsonl
    c.data.max_bad_fraction = 0.01

    c.features = ConfigDict()
    c.features.frontend = "log_mel"  # or "nemo": NVIDIA's features, which Parakeet models hear
    c.features.n_mels = 80  # log-mel bins
    c.features.window = 400  # samples, 25 ms
    c.features.hop = 160  # samples, 10 ms
    c.features.n_fft = 512

    c.specaugment = ConfigDict()  # on the upper level's features, per utterance
    c.specaugment.freq_masks = 2
    c.specaugment.freq_width = 27  # bins, at most
    c.specaugment.time_masks = 2
    c.specaugment.time_width = 40  # frames, at most
    c.specaugment.max_time_share = 0.15  # of the utterance, for each time mask

    c.model = ConfigDict()  # Conformer
    c.model.dim = 256
    c.model.layers = 16
    c.model.heads = 4
    c.model.kernel = 31  # frames of the depthwise convolution
    c.model.channels = 256  # of the subsampling convolutions
    c.model.subsampling = "conv2d"  # x4: 25 frames a second; or "parakeet", depthwise, x8
    c.model.subsampling_factor = 0  # 4 or 8; 0 = the usual one of the subsampling
    c.model.norm = "layer"  # of the convolution module; or "batch": the paper's and Parakeet's
    c.model.window = 0  # frames that attention sees, half on either side; 0 = all
    c.model.ff_mult = 4
    c.model.dropout = 0.1
    c.model.dtype = "float32"  # of the arithmetic; parameters are float32
    c.model.scan_unroll = 1  # layers a scan iteration holds
    # what the backward pass computes again: "none"; "dots": all but products with weights; "full":
    # all of a block, in the least memory and a quarter to a third more time
    c.model.remat = "none"

    c.ctc = ConfigDict()
    c.ctc.reduction = "label"  # nats per label; or "utterance"
    c.ctc.context = "full"  # or "causal": a recogniser that needs no future, for streaming
    c.ctc.implementation = "auto"  # or scan, one_scan, pallas_tpu, pallas_gpu

    c.cpc = ConfigDict()
    c.cpc.steps = 12  # frames of 40 ms that are predicted, each by its own linear map
    # neighbouring latents share 45 ms of audio; two apart 5 ms, at the tapered ends of two windows
    c.cpc.first_step = 2
    c.cpc.width = 256  # of projected latents and predictions
    c.cpc.temperature = 0.1  # of the cosine
    c.cpc.negatives = 100  # other frames of the same utterance; 0 = all
    # one causal pass; or "chunked", the published way: two windows encoded apart
    c.cpc.context = "causal"
    c.cpc.chunk = (2.0, 1.0, 1.0)  # seconds: context, future, slide of "chunked"
    c.cpc.target_gradient = True  # let the loss shape its targets, as CPC does

    c.best_rq = ConfigDict()  # masked prediction of a random quantiser's codes
    c.best_rq.stack = 4  # feature frames a label: the encoder's subsampling factor
    # a masked span starts at each label frame with this probability and covers mask_length of them:
    # 0.01 a frame of 10 ms and 400 ms of BEST-RQ; a third of the frames is masked
    c.best_rq.mask_prob = 0.04
    c.best_rq.mask_length = 10
    c.best_rq.noise_std = 0.1  # masked frames are noise of this deviation: BEST-RQ
    c.best_rq.codes = 8192  # a codebook: BEST-RQ
    c.best_rq.code_dim = 16  # BEST-RQ
    c.best_rq.codebooks = 1  # the loss is their mean: BEST-RQ

    c.penalty = ConfigDict()  # gamma_k = min(cap, start + slope * k)
    c.penalty.start = 0.0
    c.penalty.slope = 0.002
    c.penalty.cap = 1.0
    c.penalty.per = "epoch"  # or "step"
    c.penalty.constant = 0.3  # the fixed weight of method weighted_sum
    # a gradient an objective, with norms and cosine; "fused" = one backward pass
    c.gradients = "separate"
    # micro-batches a step: each gradient is summed over so many parts of the batch, in less memory.
    # Draws of an utterance stay; dropout masks are the same in each part; batch moments are those
    # of a part, and so are wav2vec 2.0's diversity of codes and mean square of features
    c.accumulate = 1
    # one causal forward pass over data.train for both losses: half the cost of a joint step; needs
    # gradients="fused", ctc.context="causal", no SpecAugment
    c.share_forward = False
    c.head_scale = "plain"  # a head takes its own gradient; "penalised" = times gamma_k

    c.phases = ConfigDict()
    c.phases.unit = "epoch"  # of the labelled plan (explore: of the unlabelled one); or "step"
    c.phases.explore = 5.0
    c.phases.joint = 100.0
    c.phases.finetune = 5.0
    c.phases.explore_when = "once"  # or "every_epoch": spread over the joint epochs
    c.phases.turn = 200  # steps that method alternating stays with one loss

    c.lr = ConfigDict()
    c.lr.explore = schedule("constant", 1e-3, 1000)  # rho
    c.lr.joint = schedule("constant", 1e-4, 1000)  # alpha
    c.lr.finetune = schedule("linear", 1e-5, 0)  # tau
    c.lr.supervised = schedule("cosine", 1e-3, 1000)  # baselines supervised, and ptft's second half
    c.lr.pretrain = schedule("constant", 1e-3, 1000)  # ptft's first half
    c.lr.turn_ctc = schedule("constant", 1e-4, 1000)  # alternating
    c.lr.turn_ssl = schedule("constant", 1e-4, 1000)
    c.lr.heads = 1.0  # the heads' learning rates are so many times the encoder's

    c.optim = ConfigDict()
    c.optim.clip = 1.0  # of the gradient norm, a group
    c.optim.weight_decay = 0.01
    c.optim.b1 = 0.9
    c.optim.b2 = 0.98
    c.ema_decay = 0.999  # evaluation, export and "best by dev" use the averaged weights

    # warn when a codebook's perplexity stays under `share` of its maximum for `rows` rows of
    # metrics.jsonl; stop=True ends the run
    c.collapse = ConfigDict({"share": 0.05, "rows": 5, "stop": False})

    c.mesh = ConfigDict()
    c.mesh.dcn = 1  # slices of a pod, or groups of hosts with a slow network between them
    c.mesh.data = -1  # devices that split the batch; -1 = all that the others leave
    c.mesh.fsdp = 1  # devices that split it too, and parameters and optimizer state
    # devices that split heads and feed-forward units, of one host; a divisor of c.model.heads
    c.mesh.tensor = 1

    c.eval_every = 2000  # steps between evaluations of dev
    c.save_every = 2000  # steps between checkpoints
    c.save_minutes = 0.0  # also save when so much time has gone by, at a log_every; 0 = off
    c.keep = 3  # checkpoints that stay
    c.keep_every = 0  # steps; its multiples stay for good; 0 = none
    c.on_full_disk = "stop"  # or "warn": go on without the checkpoint, if one process trains
    c.log_every = 50  # steps a row of metrics.jsonl averages
    c.max_skipped = 20  # abort after so many steps in a row that were not finite
    c.samples = 3  # reference / hypothesis pairs shown at each evaluation
    c.compile_cache = "~/.cache/bljust_jax/xla"  # compiled programs outlive the run; "" = off
    return c


def stream(train: str, dev: str = "", test: str = "", **changes: object) -> ConfigDict:
    """An entry of `data.streams`; `changes` are of its fields and of those of its `text`, which are
    the fields of `data.text`. Translations keep their capitals, as BLEU counts them."""
    c = ConfigDict({"train": train, "dev": dev, "test": test})  # URIs; dev, test: "" = not scored
    c.field = "text"  # which of an utterance's texts are the labels; or "translation"
    c.measure = "wer"  # the score that the best weights are chosen by; or "cer", "bleu"
    c.buckets = ()  # seconds, as many as in data.buckets; () = those
    c.text = base().data.text
    if changes.get("field") == "translation":
        c.text.normalise = ()
    for name, value in changes.items():
        (c if name in c else c.text)[name] = value
    return c


def schedule(shape: str, peak: float, warmup: int, moments: str = "keep") -> ConfigDict:
    """A phase's learning rate after `warmup` steps: `constant`; `cosine` or `linear`, which fall to
    0; `hold`, constant for 4/9 of the rest, then down to a twentieth. `moments="reset"` starts the
    phase with fresh optimizer state."""
    return ConfigDict({"shape": shape, "peak": peak, "warmup": warmup, "moments": moments})
