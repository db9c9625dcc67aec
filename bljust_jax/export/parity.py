"""Compare logits and texts of a run and of its exported model on the same audio."""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from bljust_jax.common.errors import UserError

NEEDS = {"huggingface": ("torch", "transformers"), "torch": ("torch",), "jax": ()}


class RunOutput(NamedTuple):
    """Utterances, and logits and texts of the run for them."""

    audio: list[np.ndarray]  # int16 [S]
    logits: list[np.ndarray]  # float32 [T, K], of a padded batch
    texts: list[str]


class Certificate(NamedTuple):
    """Result of a comparison: largest absolute difference, largest |logit|, number of equal texts
    and of utterances, whether also compared as one padded batch, versions of packages."""

    difference: float
    largest: float
    equal_texts: int
    utterances: int
    batched: bool
    what: str
    versions: dict[str, str]

    @property
    def relative(self) -> float:
        return self.difference / max(self.largest, 1e-30)

    def describe(self) -> str:
        how = "one by one and padded in a batch" if self.batched else "one by one"
        versions = ", ".join(f"{name} {v}" for name, v in self.versions.items())
        texts = ""
        if self.what == "logit":
            texts = f", {self.equal_texts} of {self.utterances} texts equal"
        return (
            f"largest {self.what} difference {self.difference:.2e}, largest {self.what} "
            f"{self.largest:.3g} ({self.relative:.1e} of it){texts}; {self.utterances} utterances "
            f"{how}, float32; {versions}"
        )


# (utterances, int16 [S] each) -> (logits [T', K] of each, its text)
Exported = Callable[[Sequence[np.ndarray]], list[tuple[np.ndarray, str]]]


def check_installed(kind: str) -> None:
    """Raises UserError if a package that loads the exported folder is not installed."""
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the parity check loads what was written, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install "
            f"{' '.join(missing)}, or give --unchecked"
        )


def certify(
    reference: RunOutput,
    exported: Exported,
    tolerance: float,
    *,
    kind: str,
    batched: bool,
    what: str = "logit",
) -> Certificate:
    """Compare; raises UserError if logits differ by more than `tolerance` of the largest, or texts
    differ.

    batched: compare also as one padded batch (for models that padding does not affect).
    """
    ways = [[exported([audio])[0] for audio in reference.audio]]
    ways += [exported(reference.audio)] if batched else []
    largest = max(float(np.abs(logits).max(initial=0)) for logits in reference.logits)
    differences, equal = [0.0], np.ones(len(reference.audio), bool)
    for found in ways:
        for n, (logits, text) in enumerate(found):
            differences.append(_difference(reference.logits[n], logits))
            equal[n] &= text == reference.texts[n]
    difference = float(np.max(differences))  # NaN stays
    versions = {name: metadata.version(name) for name in ("jax", *NEEDS[kind])}
    made = Certificate(difference, largest, int(equal.sum()), len(equal), batched, what, versions)
    if not made.relative <= tolerance:
        raise UserError(f"no parity, tolerance {tolerance:g} of the largest: {made.describe()}")
    if not equal.all():
        raise UserError(f"no parity, texts differ: {made.describe()}")
    return made


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if len(theirs) < len(ours) or theirs.shape[1] != ours.shape[1]:
        raise UserError(f"no parity: logits {theirs.shape}, the run's {ours.shape}")
    return float(np.abs(ours - theirs[: len(ours)]).max(initial=0))


# The exported model, run by PyTorch


def load_huggingface(
    folder: pathlib.Path, frames: Callable[[int], int], *, pretraining: bool = False
) -> Exported:
    """A folder as `transformers` loads it: `AutoModelForCTC` with feature extractor and tokenizer.

    frames: number of samples -> number of frames of logits, as in the run. pretraining: as
    `Wav2Vec2ForPreTraining`; gives its prediction of each frame, without text.
    """
    import torch
    import transformers

    auto = transformers.AutoModelForPreTraining if pretraining else transformers.AutoModelForCTC
    model, extract = _load_whole(auto, folder), _feature_extractor(folder)
    tokenizer = None if pretraining else transformers.AutoTokenizer.from_pretrained(folder)

    def exported(audio: Sequence[np.ndarray]) -> list[tuple[np.ndarray, str]]:
        with torch.no_grad():
            out = model(**_inputs(extract, audio))
        rows = (out.projected_states if pretraining else out.logits).numpy()
        own = [row[: frames(len(x))] for row, x in zip(rows, audio, strict=True)]
        return [(x, tokenizer.decode(x.argmax(-1)).strip() if tokenizer else "") for x in own]

    return exported


def load_module(folder: pathlib.Path) -> Exported:
    """A folder of `torch_folder`, by its own modeling.py."""
    import torch

    name = "bljust_jax_exported"
    spec = importlib.util.spec_from_file_location(name, folder / "modeling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Recognizer.load(folder)

    def exported(audio: Sequence[np.ndarray]) -> list[tuple[np.ndarray, str]]:
        lengths = torch.tensor([len(x) for x in audio])
        rows = [torch.from_numpy(x.copy()) for x in audio]
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        with torch.no_grad():
            logits, frames = model(batch, lengths)
        texts = model.transcribe(batch, lengths)
        own = (row[:n] for row, n in zip(logits.numpy(), frames.tolist(), strict=True))
        return list(zip(own, texts, strict=True))

    return exported


def _load_whole(auto: Any, folder: pathlib.Path) -> Any:
    """The model in float32, on CPU; UserError if names of tensors do not fit its class."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()  # what it would log is an error here
    logging.disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except ValueError as error:  # a version that does not know this kind of model
        raise UserError(f"transformers {transformers.__version__}: {error}") from error
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v and "key" in k}
    if wrong:
        raise UserError(f"{type(model).__name__} does not take these names: {wrong}")
    return model.float().eval()


def _feature_extractor(folder: pathlib.Path) -> Any:
    import transformers

    try:
        return transformers.AutoFeatureExtractor.from_pretrained(folder)
    except ImportError as error:  # transformers 4 needs librosa for Parakeet
        raise UserError(f"the parity check cannot load the feature extractor: {error}") from error


def _inputs(extract: Any, audio: Sequence[np.ndarray]) -> Mapping[str, Any]:
    waves = [x.astype(np.float32) / 32768 for x in audio]
    return extract(
        waves, sampling_rate=extract.sampling_rate, padding="longest", return_tensors="pt"
    )
