"""Write the model card (README.md) of an export from the facts of the run."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

UNKNOWN = "unknown: set by the owner"
MEASURES = ("wer", "cer", "bleu")

USE = {
    "AutoModelForCTC": """\
```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="FOLDER")
print(recognise("speech.wav")["text"])
```""",
    "AutoModelForPreTraining": """\
```python
from transformers import AutoModelForPreTraining

model = AutoModelForPreTraining.from_pretrained("FOLDER")
```""",
    "modeling.py": """\
`modeling.py` needs PyTorch alone:

```
python FOLDER/modeling.py speech.wav
```

or `Recognizer.load("FOLDER")` from it.""",
}


ALONE = "Give it one utterance at a time: the norm of its first convolution counts padding."
PARAKEET = """\
Where an utterance's feature frames are a multiple of the subsampling factor, its feature extractor
adds one frame of padding that `pipeline` decodes too; `model.generate(**inputs)` masks it."""


class Facts(NamedTuple):
    """config: of the run; final: its last metrics, {} if unfinished; about: run.json or {}; step:
    of the checkpoint; loader: a key of USE; architecture: class written; certificate: a sentence;
    batched: whether padding in a batch changes no logit."""

    config: Any
    final: Mapping[str, Any]
    about: Mapping[str, Any]
    step: int
    loader: str
    architecture: str
    certificate: str
    batched: bool


def text(facts: Facts) -> str:
    """The card: YAML head, use, data, scores, command, parity certificate."""
    config, data = facts.config, facts.config.data
    tags = ["automatic-speech-recognition", "ctc", "jax", "bljust_jax"]
    library = "transformers" if facts.loader.startswith("Auto") else "pytorch"
    transcribes = facts.loader != "AutoModelForPreTraining"
    purpose = "speech to text of audio" if transcribes else "to be fine-tuned for audio"
    head = ["pipeline_tag: automatic-speech-recognition"] if transcribes else []
    head = [f"library_name: {library}", *head, "tags:", *(f"- {tag}" for tag in tags)]
    named = [name for name in ("train", "unlabelled", "dev", "test") if data[name]]
    alone = "" if facts.batched else f"\n\n{ALONE}"
    alone += f"\n\n{PARAKEET}" if facts.architecture == "ParakeetForCTC" else ""
    lines = [
        *("---", *head, "---", ""),
        f"# {facts.architecture} trained by bljust_jax\n",
        f"Intended use: {purpose} like the training data below; it was trained for "
        f"nothing else. Licence {UNKNOWN}. Language {UNKNOWN}.\n",
        f"## Use\n\n{USE[facts.loader]}{alone}\n",
        "## Training\n",
        f"- recipe `{config.recipe}`, method `{config.method}`, encoder `{config.encoder}`, "
        f"the averaged weights that were best on dev up to checkpoint {facts.step}",
        *([f"- started from `{config.init_from}`"] if config.get("init_from") else []),
        *(f"- data.{name}: `{data[name]}`" for name in named),
        f"- audio at {data.sample_rate} Hz; texts in {data.text.units}, passed through: "
        f"{', '.join(data.text.normalise) or 'no step'}",
        f"- command: `{facts.about.get('command', 'unknown')}`",
        f"- code: {facts.about.get('git') or 'unknown'}; devices: "
        f"{facts.about.get('devices', 'unknown')}\n",
        "## Scores\n",
        *_scores(facts.final),
        "\n## Parity with the JAX model\n",
        f"{facts.certificate}.",
    ]
    return "\n".join(lines) + "\n"


def _scores(final: Mapping[str, Any]) -> list[str]:
    found = {k: v for k, v in final.items() if k.split("/")[-1] in MEASURES}
    if not found:
        return ["None: the run is unfinished."]
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(found.items())]
    costs = {k: v for k, v in final.items() if k.startswith("compute/")}
    spent = [f"\nCompute: `{json.dumps(costs)}`"] if costs else []
    return ["| measure | value |", "|---|---|", *rows, *spent]
