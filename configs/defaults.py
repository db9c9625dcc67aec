"""Default config: every field of every system with its default value and one comment.

`python -m bljust_jax.main --config=configs/X.py --help_config` prints types, ranges and choices.
Values without a source are ours; configs/librispeech.py marks those of BL-JUST's papers and script.

Rates. Each method has fields of its own for the phases in which CTC trains the encoder: `lr.joint`
(bljust, weighted_sum), `lr.ptft_supervised`, `lr.supervised`, `lr.turn_ctc` with `lr.turn_ssl`,
`lr.pseudo` after the supervised start of mpl and slimipl, `lr.masked_cpc`. All decay, and one grid
tunes each on dev: a third of the default peak, the default, three times it, at one seed;
`lr.explore`, `lr.pretrain` and `lr.finetune` stay. An encoder that a self-supervised phase has
trained starts from 3e-4 by default in every method, one from scratch from 1e-3.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """All fields with BL-JUST's defaults."""
    c = ConfigDict()
    c.recipe = "bljust"  # module of bljust_jax/recipes: bljust | birq | m2asr
    # of equal compute: bljust | ptft | supervised | weighted_sum | alternating | mpl | slimipl |
    # noisy_student | masked_cpc_ctc
    c.method = "bljust"
    c.encoder = "conformer"  # module of bljust_jax/models/encoders; its fields are c.model
    c.ssl = "cpc"  # module of bljust_jax/objectives, the lower level; its fields are c.<ssl>
    # parts of the encoder that do not train, such as ("frontend",); batch-norm moments still move
    c.freeze = ()
    # what to start from: a run's workdir (its best weights) or RUN@STEP (the averaged ones of a
    # checkpoint), a folder of export_checkpoint, a folder or file of transformers
    c.init_from = ""
    # what is taken of it: "encoder", heads by their names in the log such as "ctc_head", or "all"
    c.init_parts = ("encoder",)
    c.init_from_pickle = False  # accept a pytorch_model.bin, which can run code when it is read
    c.variant = ""  # text after the colon of --config
    c.seed = 0  # of parameters, data order, masks and dropout
    c.data = data()
    c.update(features=features(), specaugment=specaugment(), model=conformer())
    c.update(ctc=ctc(), cpc=cpc(), best_rq=best_rq())
    training(c)
    run(c)
    return c


def data() -> ConfigDict:
    """Sources, labels, batches and augmentation."""
    c = ConfigDict()
    # Sources, as URIs: *.jsonl, librispeech:ROOT/SPLIT, tedlium:ROOT/SPLIT, aishell:ROOT/SPLIT,
    # covost:ROOT/SRC_TGT/SPLIT, ami:ROOT/ihm/SPLIT (or sdm), yodas:ROOT/en000[/SHARD],
    # tfds:DIR/SPLIT (made by bljust_jax.prepare), synthetic:NAME/SPLIT; join several with +
    c.train = ""  # labelled audio
    # weights of the sources that data.train joins with +, in their order: their shares of the hours
    # of an epoch, with utterances repeated or skipped; () = all audio once
    c.mix = ()
    c.unlabelled = ""  # more audio for the lower level
    c.unlabelled_with_train = True  # it reads all audio of data.train too; without more, always
    # labels per frame for the loss hubert: files, or folders of *.km, joined by +; one line per
    # utterance, ID<TAB>12 12 7 ..., or without ids in the order of the sources; also of dev
    c.frame_labels = ""
    c.frame_label_rate = 50.0  # labels per second: HuBERT's
    c.dev = ""  # scored during training; chooses the best parameters
    c.test = ""  # scored once, at the end
    # the score that chooses the best parameters: auto = cer for scripts without spaces (Chinese,
    # Japanese, Thai, ...), mer for texts that mix them with others, wer for all others
    c.measure = "auto"
    c.train_sample = 64  # training utterances scored beside dev, no more than dev has; 0: none
    c.min_spellable = 0.5  # least share of the texts of a split to score that the labels can spell
    # for several tasks: {name of a labelled stream, such as "asr/en": stream(...)}, each with a
    # head and a tokenizer of its own; data.train, dev and test are empty then
    c.streams = ConfigDict()
    c.root = ""  # folder that must hold all audio; "" = the manifest's folder
    c.sample_rate = 16000  # Hz; other rates are resampled

    # Labels
    c.text = ConfigDict()
    c.text.units = "characters"  # or SentencePiece's "unigram", "bpe", learned from data.train
    c.text.vocab_size = 500  # number of pieces, with unigram and bpe
    c.text.model = ""  # path of a SentencePiece model to use instead of learning one
    c.text.sha256 = ""  # checksum of the SentencePiece model; a run writes it into config.json
    # in this order: invisible (characters removed), lower, upper, punctuation (a space), alef (one
    # form), diacritics (removed)
    c.text.normalise = ("invisible", "lower")
    c.labelled_fraction = 1.0  # share of the utterances of data.train that keep their labels
    c.labelled_speakers = 0  # speakers of data.train that keep their labels; 0 = all
    c.labelled_draw = (
        -1
    )  # seed of the draw of speakers and utterances with labels; -1 = config.seed
    # for tuning: speakers of data.train that train nothing; dev then has them alone, and data.dev
    # names recordings of data.train; drawn by held_back_draw
    c.held_back_speakers = 0
    c.held_back_draw = 0
    # hours of data.unlabelled (without it, of the audio of data.train that the lower level reads),
    # drawn by seed: 100 h are part of 200 h; 0 = all
    c.unlabelled_hours = 0.0
    c.overfit = 0  # number of utterances of data.train to train and score on; 0 = off
    c.min_seconds = 0.1  # shorter utterances are skipped and counted
    c.max_seconds = 40.0  # longer ones too, in dev and test as well
    # the lower level reads such audio in pieces; not with data.frame_labels
    c.unlabelled_cut = True

    # Batches
    # seconds: batches are padded to one of these lengths. Of several streams they are those of the
    # labelled one with most batches; lengths of the others follow from their own durations
    c.buckets = (5.0, 10.0, 17.0)
    # number of lengths chosen from durations for the least padding, up to the last of data.buckets;
    # 0 = data.buckets as they are, -1 = the number with the least cost of padding and compiling
    c.num_buckets = 0
    # hours of padded audio that take as long as compiling one program: 40 on one H200, a joint step
    # of a 117 M Conformer; 1 on two CPU cores, the quickstart's (results/README.md)
    c.program_hours = 40.0
    c.batch_seconds = 160.0  # padded audio per labelled batch; on average over several streams
    # T of the labelled streams' shares of that audio, hours^(1/T): 1 = by size, 5 = more even,
    # 0 = equal
    c.temperature = 0.0
    c.rows_multiple = 1  # rows of a training batch are a multiple of it: 2 for MoDo's halves
    c.labels_per_second = 25.0  # room for labels; denser utterances go to a longer bucket
    c.unlabelled_buckets = ()  # seconds; () = data.buckets; one entry = crop or join to one shape
    c.unlabelled_batch_seconds = 160.0  # padded audio per unlabelled batch
    # T of the languages' shares of an unlabelled epoch: 1 = all audio once, 5 = more even,
    # 0 = equal; utterances are repeated or skipped
    c.unlabelled_temperature = 1.0
    c.eval_batch_seconds = 160.0  # padded audio per batch in evaluation

    augmentation(c)

    # Reading
    c.num_threads = 2  # decoding threads; they change no number
    c.prefetch = 8  # batches read ahead
    c.timeout = 300.0  # seconds without a batch after which the run ends with exit code 69
    # the run ends if a larger share of a split cannot be decoded; up to it, such utterances are
    # skipped and listed in quarantine.jsonl
    c.max_bad_fraction = 0.01
    return c


def augmentation(c: ConfigDict) -> None:
    """Joined utterances, balance of texts, speed, noise, rooms, channels: fields of c.data."""
    c.join = (1, 1)  # (least, most) utterances of one speaker per joined item; (1, 1) = never
    c.join_share = 0.0  # share of items that are joined
    c.balance = 0.0  # share of draws made uniform over distinct texts, for rare words
    c.unlabelled_join = (1, 1)  # data.join of the unlabelled stream
    c.unlabelled_join_share = 0.0  # data.join_share of the unlabelled stream
    c.speed = (1.0, 1.0)  # range of speed perturbation, drawn uniformly
    c.noise = ""  # folder or URI of noise and music to add; "" = white and pink noise
    c.noise_snr = ()  # range of the SNR of added noise, dB; () = none
    c.noise_share = 1.0  # share of items with it, drawn per item
    c.babble = ""  # folder or URI of speech, mixed in as 3 to 7 voices; "" = none
    c.babble_snr = (10.0, 20.0)  # range of its SNR, dB
    c.babble_share = 0.3  # share of items with it
    # folder of impulse responses, or "simulated" (rooms by pyroomacoustics); "" = none
    c.reverb = ""
    c.reverb_share = 0.3  # share of items with it
    c.volume = ()  # range of the gain, dB; () = none
    c.telephone_share = 0.0  # share of items limited to 300-3400 Hz
    c.codec_share = 0.0  # share of items coded by mu-law or GSM at 8 kHz


def features() -> ConfigDict:
    """Input features."""
    c = ConfigDict()
    c.frontend = "log_mel"  # or "nemo": NVIDIA's features, for Parakeet models
    c.n_mels = 80  # mel bands
    c.window = 400  # samples, 25 ms
    c.hop = 160  # samples, 10 ms
    c.n_fft = 512  # points of the Fourier transform
    return c


def specaugment() -> ConfigDict:
    """SpecAugment on the features of the upper level, per utterance."""
    c = ConfigDict()
    c.freq_masks = 2  # frequency masks
    c.freq_width = 27  # mel bands per mask, at most
    c.time_masks = 2  # time masks
    c.time_width = 40  # frames per mask, at most
    c.max_time_share = 0.15  # share of the utterance per time mask, at most
    return c


def conformer() -> ConfigDict:
    """Conformer encoder, the fields of c.model."""
    c = ConfigDict()
    c.dim = 256  # width of the blocks
    c.layers = 16  # number of blocks
    c.heads = 4  # attention heads
    c.kernel = 31  # frames of the depthwise convolution
    c.channels = 256  # of the subsampling convolutions
    c.subsampling = "conv2d"  # x4: 25 frames per second; or "parakeet", depthwise, x8
    c.subsampling_factor = 0  # 4 or 8; 0 = that of the subsampling
    c.norm = "layer"  # of the convolution module; or "batch": the paper's and Parakeet's
    c.window = 0  # frames that attention covers, half on either side; 0 = all
    # of attention: "relative", as Transformer-XL and Parakeet; "rope", rotary, with less memory
    # traffic
    c.positions = "relative"
    c.attention = "auto"  # what computes it: xla, cudnn (NVIDIA GPUs), splash (TPUs)
    c.ff_mult = 4  # feed-forward width over dim
    c.dropout = 0.1
    c.dtype = "float32"  # of the arithmetic; parameters are float32
    c.scan_unroll = 1  # layers per iteration of the scan over layers
    # recomputed in the backward pass: "none"; "names": what is cheap, all but products and sums;
    # "dots": all but products with weights; "full": all of a block, with the least memory and a
    # quarter to a third more time; "auto": "names" on GPUs and TPUs, "none" on CPUs
    c.remat = "auto"
    return c


def ctc() -> ConfigDict:
    """CTC, the upper level."""
    c = ConfigDict()
    c.reduction = "label"  # nats per label; or "utterance"
    c.context = "full"  # or "causal": no future frames, for streaming
    c.implementation = "auto"  # or scan, one_scan, pallas_tpu, pallas_gpu
    return c


def cpc() -> ConfigDict:
    """CPC, a lower level."""
    c = ConfigDict()
    c.steps = 12  # predicted frames of 40 ms, each by a linear map of its own
    # distance of the first one: latents one apart share 45 ms of audio, two apart 5 ms, at the
    # tapered ends of two windows
    c.first_step = 2
    c.width = 256  # of projected latents and predictions
    c.temperature = 0.1  # divisor of the cosine
    c.negatives = 100  # other frames of the same utterance; 0 = all
    # "causal": one pass without future frames, on stored statistics. The lower level then trains
    # the network of a causal context, and the upper level decodes with full context: taps of the
    # depthwise kernels and positions that read future frames get no gradient from the lower level.
    # Or "chunked", as published: two windows encoded apart, with full context, at 2 to 2.5 times
    # the FLOPs. At equal FLOPs causal had the lowest WER of both and of BEST-RQ with each of three
    # seeds (results/README.md).
    c.context = "causal"
    c.chunk = (2.0, 1.0, 1.0)  # seconds: context, future, slide of "chunked"
    c.target_gradient = True  # gradient through the targets, as in CPC
    return c


def best_rq() -> ConfigDict:
    """BEST-RQ, a lower level: masked prediction of a random quantiser's codes."""
    c = ConfigDict()
    c.stack = 4  # feature frames per label: the encoder's subsampling factor
    # probability that a masked span starts at a label frame, and label frames per span: BEST-RQ's
    # 0.01 per frame of 10 ms and 400 ms; a third of the frames is masked
    c.mask_prob = 0.04
    c.mask_length = 10
    c.noise_std = 0.1  # standard deviation of the noise in masked frames: BEST-RQ
    c.codes = 8192  # per codebook: BEST-RQ
    c.code_dim = 16  # width of a code: BEST-RQ
    c.codebooks = 1  # the loss is their mean: BEST-RQ
    return c


def training(c: ConfigDict) -> None:
    """Penalty, phases, learning rates and optimizer."""
    c.penalty = ConfigDict()  # gamma_k = min(cap, start + slope * k)
    c.penalty.start = 0.0  # at the start of the joint phase
    c.penalty.slope = 0.002  # increase per unit
    c.penalty.cap = 1.0  # largest value
    c.penalty.per = "epoch"  # unit of k; or "step"
    c.penalty.constant = 0.3  # fixed weight of method weighted_sum
    c.gradients = "separate"  # per objective, with norms and cosine; "fused" = one backward pass
    # micro-batches per step: gradients are summed over parts of the batch, in less memory. Draws of
    # an utterance do not change; dropout masks repeat per part; batch statistics, wav2vec 2.0's
    # diversity and mean square of features and BiRQ's mean label are those of a part
    c.accumulate = 1
    # one causal forward pass on data.train for both losses, at half the cost of a joint step; needs
    # gradients="fused", ctc.context="causal" and no SpecAugment
    c.share_forward = False
    c.head_scale = "plain"  # a head takes its own gradient; "penalised" = times gamma_k

    # length of the whole run: phases, warm-ups, slopes of penalties and intervals of evaluation,
    # saves and logs are scaled to it together; 0 = as configured
    c.budget = 0.0
    # gradient = of the encoder, one per loss and step; epoch = of data.train; tflop = 1e12 FLOPs of
    # encoder, heads and passes for labels; minute or hour = wall time on this machine of steps and
    # evaluations, which a trial before the run measures
    c.budget_unit = "gradient"

    c.phases = ConfigDict()
    c.phases.unit = "epoch"  # of the labelled plan (explore: of the unlabelled one); or "step"
    c.phases.explore = 5.0  # the lower level alone
    c.phases.joint = 100.0  # both levels
    c.phases.finetune = 5.0  # the upper level alone
    c.phases.explore_when = "once"  # or "every_epoch": spread over the joint epochs
    c.phases.turn = 200  # steps per turn of method alternating

    c.lr = ConfigDict()
    c.lr.explore = schedule("constant", 1e-3, 1000)  # rho
    c.lr.joint = schedule("cosine", 3e-4, 1000)  # alpha
    c.lr.finetune = schedule("linear", 1e-5, 0)  # tau; also of weighted_sum and alternating
    c.lr.supervised = schedule("cosine", 1e-3, 1000)  # method supervised
    c.lr.pretrain = schedule("constant", 1e-3, 1000)  # method ptft, first half
    c.lr.ptft_supervised = schedule("cosine", 3e-4, 1000)  # method ptft, second half
    c.lr.turn_ctc = schedule("cosine", 3e-4, 1000)  # method alternating
    c.lr.turn_ssl = schedule("cosine", 3e-4, 1000)  # method alternating
    c.lr.pseudo = schedule("cosine", 3e-4, 1000)  # methods mpl, slimipl, after lr.supervised
    c.lr.masked_cpc = schedule("cosine", 1e-3, 1000)  # method masked_cpc_ctc, both losses
    c.lr.heads = 1.0  # learning rate of new heads over that of the encoder and of init_parts

    c.optim = ConfigDict()  # AdamW
    c.optim.clip = 1.0  # largest gradient norm per group
    c.optim.weight_decay = 0.01
    c.optim.b1 = 0.9  # decay of the first moment
    c.optim.b2 = 0.98  # decay of the second moment
    # averaged parameters, used for evaluation and export: in a phase of n steps their decay is
    # min(ema_decay, 1 - 1 / (ema_share n)), so that 98 % of them are of the last phase: ours
    c.ema_decay = 0.999  # largest decay
    c.ema_share = 0.25  # longest average, as a share of the phase; 0 = any
    # longest average in hours of padded audio of a phase's batches, counted as by a warm-up in
    # hours: the decay is at most 1 - 1 / steps; 0 = any
    c.ema_hours = 0.0


def run(c: ConfigDict) -> None:
    """Devices, evaluation, checkpoints and logs."""
    # warn if a codebook's perplexity is below `share` of its maximum for `rows` rows of
    # metrics.jsonl; stop=True, the default of BiRQ and wav2vec 2.0, ends the run
    c.collapse = ConfigDict({"share": 0.05, "rows": 5, "stop": False})

    c.mesh = ConfigDict()
    c.mesh.dcn = 1  # slices of a pod, or groups of hosts with a slow network between them
    c.mesh.data = -1  # devices that split the batch; -1 = all that the others leave
    c.mesh.fsdp = 1  # devices that split the batch, parameters and optimizer state
    c.mesh.tensor = 1  # devices of one host that split heads and feed-forward units

    # end training, with the best parameters so far, after this number of evaluations in a row:
    # of the last phase, without a better score; of any phase, without an error; 0 = never
    c.stop = ConfigDict({"patience": 0, "perfect": 0})
    c.eval_every = 2000  # steps between evaluations of dev
    c.save_every = 2000  # steps between checkpoints
    c.save_minutes = 0.0  # minutes after which a checkpoint is due at a log_every; 0 = off
    c.keep = 3  # newest checkpoints that are kept; those at the ends of phases always are
    c.keep_every = 0  # steps; checkpoints at its multiples are kept for good; 0 = none
    c.on_full_disk = "stop"  # or "warn": go on without the checkpoint; for one process
    c.log_every = 50  # steps per row of metrics.jsonl
    c.max_skipped = 20  # consecutive non-finite steps after which the run ends
    c.samples = 3  # reference and hypothesis pairs shown per evaluation
    c.compile_cache = "~/.cache/bljust_jax/xla"  # folder of compiled programs; "" = none
    c.compile_threads = 0  # programs compiled at once; 0 = one per core, at most 8


def stream(train: str, dev: str = "", test: str = "", **changes: object) -> ConfigDict:
    """An entry of `data.streams`; `changes` are of its fields and of those of its `text`, which are
    the fields of `data.text`. Translations keep their capitals, as BLEU counts them."""
    c = ConfigDict({"train": train, "dev": dev, "test": test})  # URIs; dev, test: "" = not scored
    c.field = "text"  # the text of an utterance that is the label; or "translation"
    c.measure = "wer"  # the score that chooses the best parameters; or "cer", "mer", "bleu"
    # seconds, as many as in data.buckets; () = those. Unless most batches are of this stream, only
    # the last is taken as it is
    c.buckets = ()
    c.text = data().text
    if changes.get("field") == "translation":
        c.text.normalise = ("invisible",)
    for name, value in changes.items():
        (c if name in c else c.text)[name] = value
    return c


def schedule(
    shape: str, peak: float, warmup: float, moments: str = "keep", unit: str = "step"
) -> ConfigDict:
    """Learning rate of a phase after a linear warm-up: `constant`; `cosine` or `linear`, down to 0;
    `hold`, constant for 4/9 of the rest, then down to a twentieth. `warmup` is in steps, in hours
    of padded audio (unit="hour") or a share of the phase (unit="share"). `moments="reset"` starts
    the phase with new optimizer state."""
    c = ConfigDict({"shape": shape, "peak": peak, "warmup": float(warmup), "warmup_unit": unit})
    c.moments = moments
    return c
