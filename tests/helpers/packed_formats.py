"""The utterances of `formats` in tar shards, Parquet, Arrow and Lhotse's cuts."""

import gzip
import io
import json
import pathlib
import tarfile

import pyarrow
import pyarrow.parquet
import soundfile

from tests.helpers import formats
from tests.helpers.formats import RATE, Spoken


def encoded(u: Spoken, suffix: str = ".flac") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, u.samples, RATE, format=suffix[1:].upper(), subtype="PCM_16")
    return file.getvalue()


def pack(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    """A tar archive of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shards(found: list[Spoken], count: int) -> list[list[Spoken]]:
    size = -(-len(found) // count)
    return [found[n * size : (n + 1) * size] for n in range(count)]


def webdataset(top: pathlib.Path, found: list[Spoken]) -> str:
    for n, part in enumerate(shards(found, 3)):
        members = {}
        for u in part:
            members[f"{u.id}.flac"] = encoded(u)
            row = {"speaker": u.speaker} | ({"sentence": u.text} if u.text else {})
            members[f"{u.id}.json"] = json.dumps(row, ensure_ascii=False).encode()
        pack(top / f"train-{n:03d}.tar", members)
    return f"webdataset:{top}/train-{{000..002}}.tar"


def webdataset_texts(top: pathlib.Path, found: list[Spoken]) -> str:
    """Texts of their own after WAV files, in a folder of shards without a pattern."""
    for n, part in enumerate(shards(found, 3)):
        members = {}
        for u in part:
            members[f"{u.id}.WAV"] = encoded(u, ".wav")
            members |= {f"{u.id}.txt": u.text.encode()} if u.text else {}
        pack(top / f"{n}.tar", members)
    return f"webdataset:{top}"


def nemo(top: pathlib.Path, found: list[Spoken]) -> str:
    """Sharded manifests, as NeMo's script writes them."""
    for n, part in enumerate(shards(found, 2)):
        pack(top / f"audio_{n}.tar", {f"a_{u.id}.wav": encoded(u, ".wav") for u in part})
        rows = (_nemo_row(u, f"a_{u.id}.wav", shard_id=n) for u in part)
        formats.write_lines(top / "sharded_manifests" / f"manifest_{n}.json", rows)
    tars = f"?tars={top}/audio__OP_0..1_CL_.tar"
    return f"nemo:{top}/sharded_manifests/manifest__OP_0..1_CL_.json{tars}"


def nemo_segments(top: pathlib.Path, found: list[Spoken]) -> str:
    """Segments of one recording per speaker: its later entries are named -sub1, -sub2, ..."""
    formats.write_recordings(top / "long", found)
    speakers = sorted({u.speaker for u in found})
    recordings = {f"{s}.flac": (top / "long" / f"{s}.flac").read_bytes() for s in speakers}
    pack(top / "audio_0.tar", recordings)
    counts: dict[str, int] = {}
    rows = []
    for u in found:
        n = counts[u.speaker] = counts.get(u.speaker, -1) + 1
        name = f"{u.speaker}-sub{n}.flac" if n else f"{u.speaker}.flac"
        rows.append(_nemo_row(u, name, offset=u.start, duration=u.seconds))
    formats.write_lines(top / "tarred_audio_manifest.json", rows)
    return f"nemo:{top}/tarred_audio_manifest.json"


def _nemo_row(u: Spoken, name: str, **more) -> str:
    row = {"audio_filepath": name, "id": u.id, "speaker": u.speaker, **more}
    return json.dumps(row | ({"text": u.text} if u.text else {}))


def cut(u: Spoken, path: str, start: float, whole: float) -> dict:
    """A MonoCut of Lhotse, with the fields that it writes."""
    supervision = {"id": f"{u.id}-s", "recording_id": u.speaker, "start": 0.0, "channel": 0}
    supervision |= {"duration": u.seconds, "language": "nl", "speaker": u.speaker}
    supervision |= {"text": u.text} if u.text else {}
    recording = {"id": u.speaker, "sampling_rate": RATE, "num_samples": round(whole * RATE)}
    recording |= {"sources": [{"type": "file", "channels": [0], "source": path}]}
    recording |= {"duration": whole, "channel_ids": [0]}
    times = {"start": start, "duration": u.seconds, "channel": 0}
    parts = {"supervisions": [supervision], "recording": recording, "type": "MonoCut"}
    return {"id": u.id, **times, **parts}


def lhotse(top: pathlib.Path, found: list[Spoken]) -> str:
    formats.write_audio(top / "audio", found)
    cuts = [cut(u, f"audio/{u.id}.flac", 0.0, u.seconds) for u in found]
    return write_cuts(top, cuts)


def lhotse_segments(top: pathlib.Path, found: list[Spoken]) -> str:
    """Cuts of long recordings."""
    formats.write_recordings(top, found)
    cuts = [cut(u, f"{u.speaker}.flac", u.start, 60.0) for u in found]
    return write_cuts(top, cuts)


def write_cuts(top: pathlib.Path, cuts: list[dict]) -> str:
    top.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(cut, ensure_ascii=False) + "\n" for cut in cuts)
    (top / "cuts_train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return f"lhotse:{top}/cuts_train.jsonl.gz"


AUDIO = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def table(found: list[Spoken], audio: list[dict] | None = None) -> pyarrow.Table:
    """The columns of a data set of Hugging Face, with encoded audio."""
    audio = audio or [{"bytes": encoded(u), "path": f"{u.id}.flac"} for u in found]
    columns = {
        "audio": pyarrow.array(audio, AUDIO),
        "sentence": pyarrow.array([u.text for u in found], pyarrow.string()),
        "speaker_id": pyarrow.array([u.speaker for u in found]),
        "begin_time": pyarrow.array([70.0] * len(found)),  # of the original recording
    }
    return pyarrow.table(columns)


def hf_parquet(top: pathlib.Path, found: list[Spoken]) -> str:
    (top / "data").mkdir(parents=True)
    for n, part in enumerate(shards(found, 2)):
        path = top / "data" / f"train-{n:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table(part), path, row_group_size=30)
    return f"hf:{top}/train"


def hf_referenced(top: pathlib.Path, found: list[Spoken]) -> str:
    """Paths in place of bytes."""
    formats.write_audio(top / "clips", found)
    audio = [{"bytes": None, "path": f"clips/{u.id}.flac"} for u in found]
    pyarrow.parquet.write_table(table(found, audio), top / "train.parquet")
    return f"hf:{top}"


def hf_saved(top: pathlib.Path, found: list[Spoken]) -> str:
    """Two splits by `save_to_disk`, each a stream of Arrow batches."""
    for split in ("train", "test"):
        folder = top / split
        folder.mkdir(parents=True)
        names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
        for name, part in zip(names, shards(found, 2), strict=True):
            whole = table(part)
            with pyarrow.ipc.new_stream(str(folder / name), whole.schema) as stream:
                stream.write_table(whole, max_chunksize=40)
        state = {"_data_files": [{"filename": name} for name in names], "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
    (top / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return f"hf:{top}/train"


# {format: (function that writes it, whether it names speakers)}
PACKED = {
    "webdataset": (webdataset, True),
    "webdataset of texts": (webdataset_texts, False),
    "nemo": (nemo, True),
    "nemo segments": (nemo_segments, True),
    "lhotse": (lhotse, True),
    "lhotse segments": (lhotse_segments, True),
    "hf parquet": (hf_parquet, True),
    "hf referenced": (hf_referenced, True),
    "hf saved": (hf_saved, True),
}
