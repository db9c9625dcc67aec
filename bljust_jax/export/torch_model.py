"""A speech recognizer in one file that needs PyTorch alone; the weights and config.json lie beside.

    from modeling import Recognizer           # or: python modeling.py SPEECH.wav ...
    model = Recognizer.load("FOLDER")
    logits, frames = model(audio, samples)    # audio [B, S] in [-1, 1] or int16, samples [B]
    texts = model.transcribe(audio, samples)

Audio is mono, at config.json's sample_rate; samples beyond the length of an utterance are ignored.
Class 0 of the logits is the CTC blank.
"""

import itertools
import json
import math
import pathlib
import sys
import wave

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def frames_valid(frames: int, lengths: Tensor) -> Tensor:
    """True on the first `lengths[b]` of `frames` frames, [B, T]."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangles on the Slaney mel scale, each of area 1: [n_fft / 2 + 1, M]."""
    top = (
        15 + 27 * math.log(sample_rate / 2000, 6.4) if sample_rate > 2000 else 0.0075 * sample_rate
    )
    mel = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    corners = torch.where(mel > 15, 1000 * 6.4 ** ((mel - 15) / 27), mel * 1000 / 15)
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    hertz = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * sample_rate / n_fft
    rising, falling = (hertz - left) / (peak - left), (right - hertz) / (right - peak)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)).float()


class Features(nn.Module):
    """Audio [B, S] to normalised log-mel features [B, T, M], exactly 0 in padded frames."""

    def __init__(self, sample_rate, n_mels, window, hop, n_fft, frontend="log_mel", stored=False):
        super().__init__()
        self.window, self.hop, self.n_fft, self.frontend = window, hop, n_fft, frontend
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, n_mels), persistent=False)
        self.register_buffer("hann", torch.hann_window(window, periodic=False), persistent=False)
        if stored:  # statistics of the training data, so that no future frame is needed
            self.register_buffer("mean", torch.zeros(n_mels))
            self.register_buffer("std", torch.ones(n_mels))
        self.stored = stored

    def forward(self, audio: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        audio = torch.where(frames_valid(audio.shape[1], samples), audio, 0.0)
        if self.frontend == "nemo":
            x, lengths = self.centred(audio, samples), samples // self.hop
        else:
            frames = audio.unfold(1, self.window, self.hop)
            x = torch.fft.rfft(frames * self.hann, self.n_fft)
            lengths = ((samples - self.window) // self.hop + 1).clamp(min=0)
        x = torch.log((x.real**2 + x.imag**2) @ self.filters + 2.0**-24)
        return self.normalise(x, lengths), lengths

    def centred(self, audio: Tensor, samples: Tensor) -> Tensor:
        """NeMo's spectrum: preemphasis, frames centred on multiples of the hop."""
        audio = torch.cat([audio[:, :1], audio[:, 1:] - 0.97 * audio[:, :-1]], dim=1)
        audio = torch.where(frames_valid(audio.shape[1], samples), audio, 0.0)
        side = (self.n_fft - self.window) // 2
        hann = F.pad(self.hann, (side, self.n_fft - self.window - side))
        frames = F.pad(audio, (self.n_fft // 2,) * 2).unfold(1, self.n_fft, self.hop)
        return torch.fft.rfft(frames * hann)

    def normalise(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = frames_valid(x.shape[1], lengths)[..., None]
        if self.stored:
            mean, scale = self.mean, (self.std**2 + 1e-5).sqrt()
        else:
            count = lengths.clamp(min=1)[:, None, None]
            mean = torch.where(valid, x, 0.0).sum(1, keepdim=True) / count
            squares = torch.where(valid, x - mean, 0.0).square().sum(1, keepdim=True)
            if self.frontend == "nemo":
                scale = (squares / (count - 1).clamp(min=1)).sqrt() + 1e-5
            else:
                scale = (squares / count + 1e-5).sqrt()
        return torch.where(valid, (x - mean) / scale, 0.0)


class Subsampling(nn.Module):
    """3x3 convolutions of stride 2, ReLU, a linear map: `factor` feature frames become one."""

    def __init__(self, n_mels, channels, dim, factor, separable):
        super().__init__()
        self.stages = int(math.log2(factor))
        self.conv1 = nn.Conv2d(1, channels, 3, 2, 1)
        for n in range(2, self.stages + 1):
            if separable:
                setattr(self, f"depthwise{n}", nn.Conv2d(channels, channels, 3, 2, 1, 1, channels))
                setattr(self, f"pointwise{n}", nn.Linear(channels, channels))
            else:
                setattr(self, f"conv{n}", nn.Conv2d(channels, channels, 3, 2, 1))
        bands = -(-n_mels // factor)
        self.linear = nn.Linear(bands * channels, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x[:, None]  # [B, channels, T, bands]
        for n in range(1, self.stages + 1):
            if hasattr(self, f"conv{n}"):
                x = getattr(self, f"conv{n}")(x)
            else:
                x = getattr(self, f"depthwise{n}")(x)
                x = getattr(self, f"pointwise{n}")(x.movedim(1, 3)).movedim(3, 1)
            lengths = (lengths + 1) // 2
            valid = frames_valid(x.shape[2], lengths)
            x = torch.where(valid[:, None, :, None], x.relu(), 0.0)
        x = self.linear(x.permute(0, 2, 3, 1).flatten(2))
        return torch.where(valid[..., None], x, 0.0), lengths


def allowed_keys(valid: Tensor, causal: bool, window: int) -> Tensor:
    """Which keys a query may attend to, [B, T, T]: in a window, those up to half of it away."""
    frames = valid.shape[1]
    ahead = torch.arange(frames)[None, :] - torch.arange(frames)[:, None]
    allowed = ahead.abs() <= (window // 2 or frames)
    if causal:
        allowed = allowed & (ahead <= 0)
    return valid[:, None, :] & allowed.to(valid.device)


def sinusoids(steps: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines of step * 10000^(-2i/D), float64, [T, D / 2] each."""
    angle = steps.double()[:, None] * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    return angle.sin(), angle.cos()


def rotated(x: Tensor) -> Tensor:  # [B, H, T, S], the halves of a head as pairs
    sin, cos = (y.to(x) for y in sinusoids(torch.arange(x.shape[2]), x.shape[3]))
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    """With relative positions (Transformer-XL, section 3.3) or rotary ones (RoFormer)."""

    def __init__(self, dim, heads, positions):
        super().__init__()
        self.heads, self.rope = heads, positions == "rope"
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Linear(dim, dim, bias=self.rope and name != "value"))
        if not self.rope:
            self.position = nn.Linear(dim, dim, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
            self.position_bias = nn.Parameter(torch.zeros(heads, dim // heads))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        query, key, value = (self.split(f(x)) for f in (self.query, self.key, self.value))
        if self.rope:
            scores = rotated(query) @ rotated(key).mT
        else:
            scores = (query + self.content_bias[:, None]) @ key.mT + self.by_distance(query)
        scores = scores * query.shape[-1] ** -0.5
        weights = scores.masked_fill(~allowed[:, None], -1e30).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # [..., H, T, D / H]

    def by_distance(self, query: Tensor) -> Tensor:
        t = torch.arange(query.shape[2], device=query.device)
        distance = torch.arange(len(t) - 1, -len(t), -1)
        table = torch.cat(sinusoids(distance, self.position.in_features), -1).to(query)
        scores = (query + self.position_bias[:, None]) @ self.split(self.position(table)).mT
        row = (len(t) - 1 - t[:, None] + t[None, :]).expand(*query.shape[:2], -1, -1)
        return scores.gather(-1, row)


class FeedForward(nn.Module):
    def __init__(self, dim, expansion):
        super().__init__()
        self.up, self.down = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class ConvModule(nn.Module):
    """Pointwise, GLU, depthwise, norm, SiLU, pointwise; `causal` uses no taps of the future."""

    def __init__(self, dim, taps, norm):
        super().__init__()
        self.side, self.batch_norm = (taps - 1) // 2, norm == "batch"
        self.pointwise_in, self.pointwise_out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.depthwise = nn.Conv1d(dim, dim, taps, groups=dim)
        self.norm = nn.BatchNorm1d(dim) if self.batch_norm else nn.LayerNorm(dim)

    def forward(self, x: Tensor, valid: Tensor, causal: bool) -> Tensor:
        x = torch.where(valid[..., None], F.glu(self.pointwise_in(x), -1), 0.0).mT
        kernel = self.depthwise.weight[..., : self.side + 1] if causal else self.depthwise.weight
        x = F.pad(x, (self.side, 0 if causal else self.side))
        x = F.conv1d(x, kernel, self.depthwise.bias, groups=x.shape[1])
        x = self.norm(x).mT if self.batch_norm else self.norm(x.mT)
        return self.pointwise_out(F.silu(x))


class ConformerBlock(nn.Module):
    def __init__(self, dim, heads, taps, expansion, norm, positions):
        super().__init__()
        for name in ("ff1_norm", "attention_norm", "conv_norm", "ff2_norm", "norm"):
            setattr(self, name, nn.LayerNorm(dim))
        self.ff1, self.ff2 = FeedForward(dim, expansion), FeedForward(dim, expansion)
        self.attention = Attention(dim, heads, positions)
        self.conv = ConvModule(dim, taps, norm)

    def forward(self, x: Tensor, valid: Tensor, allowed: Tensor, causal: bool) -> Tensor:
        x = x + 0.5 * self.ff1(self.ff1_norm(x))
        x = x + self.attention(self.attention_norm(x), allowed)
        x = x + self.conv(self.conv_norm(x), valid, causal)
        x = x + 0.5 * self.ff2(self.ff2_norm(x))
        return self.norm(x)


class Conformer(nn.Module):
    """Features [B, T, M] to frames [B, ceil(T / factor), D] (Gulati et al., 2020); scores of all
    pairs of frames are held, in a window too."""

    def __init__(self, n_mels, causal, model):
        super().__init__()
        self.causal, self.window = causal, model.get("window", 0)
        self.dim, separable = model["dim"], model["subsampling"] == "parakeet"
        factor = model.get("subsampling_factor") or (8 if separable else 4)
        self.frontend = Subsampling(n_mels, model["channels"], self.dim, factor, separable)
        shape = (self.dim, model["heads"], model["kernel"], model["ff_mult"])
        kinds = model.get("norm", "layer"), model.get("positions", "relative")
        self.blocks = nn.ModuleList(ConformerBlock(*shape, *kinds) for _ in range(model["layers"]))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.frontend(x, lengths)
        valid = frames_valid(x.shape[1], lengths)
        allowed = allowed_keys(valid, self.causal, self.window)
        for block in self.blocks:
            x = block(x, valid, allowed, self.causal)
        return torch.where(valid[..., None], x, 0.0), lengths


class ResidualConvolutions(nn.Module):
    """Adds to x four convolutions, each after a LayerNorm over bands and GELU, of x plus its
    self-attention over all (frame, band) positions."""

    def __init__(self, channels, bands, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        sizes = [channels, *[2 * channels] * 3, channels]
        for n in range(1, 5):
            setattr(self, f"norm{n}", nn.LayerNorm(bands))
            setattr(self, f"conv{n}", nn.Conv2d(sizes[n - 1], sizes[n], 3, 1, 1))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        grid, padding = x.flatten(2).mT, ~valid.repeat_interleave(x.shape[3], 1)
        y, _ = self.attention(grid, grid, grid, padding, need_weights=False)
        y = x + y.mT.unflatten(2, x.shape[2:])
        for n in range(1, 5):
            y = F.gelu(getattr(self, f"norm{n}")(y))
            y = getattr(self, f"conv{n}")(torch.where(valid[:, None, :, None], y, 0.0))
        return x + y


class PlainConvolution(nn.Module):
    """GELU and one 3x3 convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.conv(torch.where(valid[:, None, :, None], F.gelu(x), 0.0))


class BidirectionalLayer(nn.Module):
    """LayerNorm, GELU, and a GRU or LSTM in both directions over each utterance's own frames."""

    def __init__(self, kind, inputs, units):
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.cells = kind(inputs, units, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        frames, lengths = x.shape[1], lengths.clamp(min=1).cpu()
        x = F.gelu(self.norm(x))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.cells(packed)[0], True, 0.0, frames)[0]


class CnnRnn(nn.Module):
    """Features [B, T, M] to frames [B, ceil(T / 2), D]: 2-d convolutions, bidirectional layers."""

    def __init__(self, n_mels, causal, model):
        super().__init__()
        channels, bands, gru = model["channels"], -(-n_mels // 2), model["kind"] == "gru"
        self.dim = model["proj"] or 2 * model["units"]
        self.stem = nn.Conv2d(1, channels, 3, 2, 1)
        self.depth = model["cnn_layers"], model["rnn_layers"]
        for n in range(1, self.depth[0] + 1):
            residual = ResidualConvolutions(channels, bands, model["heads"]) if gru else None
            setattr(self, f"cnn{n}", residual or PlainConvolution(channels))
        self.linear = nn.Linear(bands * channels, model["latent_dim"])
        for n in range(1, self.depth[1] + 1):
            inputs = 2 * model["units"] if n > 1 else model["latent_dim"]
            cells = nn.GRU if gru else nn.LSTM
            setattr(self, f"rnn{n}", BidirectionalLayer(cells, inputs, model["units"]))
        self.proj = nn.Linear(2 * model["units"], self.dim) if model["proj"] else None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.stem(x[:, None]), (lengths + 1) // 2
        valid = frames_valid(x.shape[2], lengths)
        for n in range(1, self.depth[0] + 1):
            x = getattr(self, f"cnn{n}")(x, valid)
        x = torch.where(valid[:, None, :, None], x, 0.0)
        x = self.linear(x.permute(0, 2, 3, 1).flatten(2))
        for n in range(1, self.depth[1] + 1):
            x = getattr(self, f"rnn{n}")(x, lengths)
        if self.proj is not None:
            x = F.gelu(self.proj(x))
        return torch.where(valid[..., None], x, 0.0), lengths


ENCODERS = {"conformer": Conformer, "cnn_rnn": CnnRnn}


class Recognizer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        causal = config["context"] == "causal"
        self.features = Features(config["sample_rate"], stored=causal, **config["features"])
        encoder = ENCODERS[config["encoder"]]
        self.encoder = encoder(config["features"]["n_mels"], causal, config["model"])
        self.ctc_head = nn.Linear(self.encoder.dim, len(config["tokens"]))

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Recognizer":
        folder = pathlib.Path(folder)
        model = cls(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        model.load_state_dict(read_safetensors(folder / "model.safetensors"))
        return model.eval()

    def forward(self, audio: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, K] and valid frames [B] of audio [B, S]."""
        if not audio.is_floating_point():
            audio = audio / 32768
        x, lengths = self.features(audio.to(self.features.filters.dtype), samples)
        x, lengths = self.encoder(x, lengths)
        return self.ctc_head(x), lengths

    @torch.no_grad()
    def transcribe(self, audio: Tensor, samples: Tensor) -> list[str]:
        """The texts of the best paths: equal neighbours merged, blanks dropped."""
        logits, lengths = self(audio, samples)
        texts = []
        for path, length in zip(logits.argmax(-1).tolist(), lengths.tolist(), strict=True):
            units = [self.config["tokens"][k] for k, _ in itertools.groupby(path[:length]) if k]
            texts.append("".join(units).replace("\u2581", " ").strip())
        return texts


def read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file: 8 bytes of header size, a JSON header, the numbers."""
    data, dtypes = bytearray(path.read_bytes()), {"F32": torch.float32, "I64": torch.int64}
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    numbers, tensors = torch.frombuffer(data, dtype=torch.uint8)[start:], {}
    for name in header.keys() - {"__metadata__"}:
        first, last = header[name]["data_offsets"]
        tensor = numbers[first:last].clone().view(dtypes[header[name]["dtype"]])
        tensors[name] = tensor.reshape(header[name]["shape"])
    return tensors


def read_wav(path: str, sample_rate: int) -> Tensor:
    """The samples [S] of a mono 16-bit WAV file."""
    with wave.open(path) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, sample_rate):
            raise ValueError(f"not mono, 16 bits, {sample_rate} Hz: convert it")
        data = bytearray(file.readframes(file.getnframes()))
    return torch.frombuffer(data, dtype=torch.int16)


def main() -> None:
    model = Recognizer.load(pathlib.Path(__file__).parent)
    for path in sys.argv[1:]:
        try:
            audio = read_wav(path, model.config["sample_rate"])
        except (OSError, EOFError, ValueError, wave.Error) as error:
            sys.exit(f"error: {path}: {error}")
        print(*model.transcribe(audio[None], torch.tensor([len(audio)])))


if __name__ == "__main__":
    main()
