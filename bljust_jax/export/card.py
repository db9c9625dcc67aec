"""Write the model card (README.md) of an export from the facts of the run."""

import json
from collections.abc import Mapping
from typing import Any

UNKNOWN = "unknown: set by the owner"
MEASURES = ("wer", "cer", "mer", "bleu")

USE = {
    "ctc": """\
```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="FOLDER")
print(recognise("speech.wav")["text"])
```""",
    "Wav2Vec2ForPreTraining": """\
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


def text(
    config: Any,
    final: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    step: int,
    architecture: str,
    certificate: str,
    batched: bool,
    task: str = "",
) -> str:
    """The card: YAML head, use, data, scores, command, parity certificate.

    config: of the run; final: its last metrics, {} if unfinished; about: run.json or {}; step: of
    the checkpoint; architecture: class or file written; certificate: a sentence; batched: whether
    padding in a batch changes no logit; task: its name, "" for the only one.
    """
    data = config.data
    tags = ["automatic-speech-recognition", "ctc", "jax", "bljust_jax"]
    use = USE.get(architecture, USE["ctc"])
    library = "pytorch" if architecture == "modeling.py" else "transformers"
    transcribes = architecture != "Wav2Vec2ForPreTraining"
    purpose = "speech to text of audio" if transcribes else "to be fine-tuned for audio"
    if task.startswith("st/"):
        purpose = f"translation ({task.removeprefix('st/')}) of audio"
    head = ["pipeline_tag: automatic-speech-recognition"] if transcribes else []
    head = [f"library_name: {library}", *head, "tags:", *(f"- {tag}" for tag in tags)]
    named = [name for name in ("train", "unlabelled", "dev", "test") if data[name]]
    alone = "" if batched else f"\n\n{ALONE}"
    alone += f"\n\n{PARAKEET}" if architecture == "ParakeetForCTC" else ""
    lines = [
        *("---", *head, "---", ""),
        f"# {architecture} trained by bljust_jax\n",
        f"Intended use: {purpose} like the training data below; it was trained for "
        f"nothing else. Licence {UNKNOWN}. Language {UNKNOWN}.\n",
        f"## Use\n\n{use}{alone}\n",
        "## Training\n",
        f"- recipe `{config.recipe}`, method `{config.method}`, encoder `{config.encoder}`, "
        f"the averaged weights that were best on dev up to checkpoint {step}",
        *([f"- started from `{config.init_from}`"] if config.get("init_from") else []),
        *(f"- data.{name}: `{data[name]}`" for name in named),
        f"- audio at {data.sample_rate} Hz; texts in {data.text.units}, passed through: "
        f"{', '.join(data.text.normalise) or 'no step'}",
        f"- command: `{about.get('command', 'unknown')}`",
        f"- code: {about.get('git') or 'unknown'}; devices: {about.get('devices', 'unknown')}\n",
        "## Scores\n",
        *_scores(final),
        "\n## Parity with the JAX model\n",
        f"{certificate}.",
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
