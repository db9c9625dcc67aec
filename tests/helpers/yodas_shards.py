"""Write shards of YODAS in the published layout."""

import io
import tarfile

import numpy as np
import soundfile

RATE = 24000  # resampled like all others
IDS = ["--AbC_d-1e-00000-00000500-00000600", "--AbC_d-1e-00001-00000600-00000650"]
IDS += ["vvvvvvvvvvv-00000-00001000-00001080"]


def seconds(identity):
    begin, end = identity.split("-")[-2:]
    return (int(end) - int(begin)) / 100


def tone(number, duration):
    time = np.arange(round(duration * RATE)) / RATE
    return np.round(9000 * np.sin(2 * np.pi * 300 * (number + 1) * time)).astype(np.int16)


def write_shard(subset, name="00000000", ids=IDS, packed=False, texts=None, folder="./audio/x"):
    """One shard in the published layout: WAV files in a folder of the tar file."""
    for part in ("audio", "text", "duration"):
        (subset / part).mkdir(parents=True, exist_ok=True)
    tar = subset / "audio" / f"{name}.tar{'.gz' if packed else ''}"
    with tarfile.open(tar, "w:gz" if packed else "w") as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for number, identity in enumerate(ids):
            file = io.BytesIO()
            soundfile.write(file, tone(number, seconds(identity)), RATE, format="WAV")
            member = tarfile.TarInfo(f"{folder}/{identity}.wav")
            member.size = file.tell()
            file.seek(0)
            archive.addfile(member, file)
    texts = texts or [f"Caption {n} e\u0301" for n in range(len(ids))]
    lines = [f"{i} {text}" for i, text in zip(ids, texts, strict=True)]
    (subset / "text" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = "".join(f"{i} {seconds(i)}\n" for i in ids)
    (subset / "duration" / f"{name}.txt").write_text(lines)
    return tar
