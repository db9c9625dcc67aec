"""Reader of CoVoST v2 on Common Voice 4: `covost:ROOT/SRC_TGT/SPLIT`, such as nl_en/train.

ROOT/SRC is Common Voice's folder of the spoken language, with clips/*.mp3 and validated.tsv (path,
sentence, client_id and others); `covost_v2.SRC_TGT.tsv` (path, translation, split) lies in it or in
ROOT. A table of the split, `covost_v2.SRC_TGT.SPLIT.tsv` (path, sentence, translation, client_id),
is read instead of both if it exists. Columns are found by name, as their order differs between
releases.
"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Iterator

from bljust_jax.common.errors import UserError
from bljust_jax.data.listings import tsv_rows
from bljust_jax.data.sources import Utterance, inside, nfc, require, with_durations

SPLITS = ("train", "dev", "test")
_LANGUAGE = r"[a-z]{2,3}(?:-[A-Z]{2})?"


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of one split, in the order of the table that holds their sentences.

    text: the sentence in SRC; translation: the sentence in TGT, both NFC; lang: SRC; speaker:
    client_id; id: the clip's name without extension. Splits are CoVoST's, whose train has
    additions to Common Voice's. Durations come from the MP3 headers, a fifth of a millisecond or
    more per clip. A clip that is missing or no MP3 has a `fault`. Raises UserError for a name that
    is not SRC_TGT/SPLIT, a missing language, table or column, a malformed line, or a folder or clip
    outside a given `root`.
    """
    pair, split = pathlib.PurePath(rest).parts[-2:] if rest.count("/") else ("", "")
    named = re.fullmatch(f"({_LANGUAGE})_{_LANGUAGE}", pair)
    if named is None or split not in SPLITS:
        usage = "name ROOT/SRC_TGT/SPLIT, for instance ROOT/nl_en/train"
        raise UserError(f"covost:{rest}: {usage}; splits are {', '.join(SPLITS)}")
    lang = named[1]
    top = pathlib.Path(root, rest).absolute().parents[1]
    clips = top / lang / "clips"
    inside(clips, root, f"covost:{rest}")
    cure = f"unpack Common Voice 4's archive of {lang!r} so that {top / lang} holds clips and"
    require(clips, f"covost:{rest}", f"{cure} validated.tsv")
    found = []
    for row, where in _rows(top, lang, pair, split, rest):
        if not row["path"] or row["path"] != pathlib.PurePath(row["path"]).name:
            raise UserError(f"{where}: {row['path']!r} is no file name; write it without a path")
        found.append(
            Utterance(
                id=pathlib.PurePath(row["path"]).stem,
                path=inside(clips / row["path"], root, where),
                offset=0.0,
                duration=0.0,
                text=nfc(row["sentence"]),
                lang=lang,
                speaker=row["client_id"],
                line=where,
                translation=nfc(row["translation"]),
            )
        )
    return [_with_clear_fault(u) for u in with_durations(found)]


def _rows(
    top: pathlib.Path, lang: str, pair: str, split: str, rest: str
) -> Iterator[tuple[dict[str, str], str]]:
    """(row with path, sentence, client_id and translation, "file:line" of the sentence) of each
    clip of the split."""
    columns = ("path", "sentence", "client_id")
    whole = _find(top, lang, f"covost_v2.{pair}.{split}.tsv")
    if whole.is_file():
        yield from tsv_rows(whole, (*columns, "translation"))
        return
    listing, validated = _find(top, lang, f"covost_v2.{pair}.tsv"), top / lang / "validated.tsv"
    require(listing, f"covost:{rest}", "it comes with CoVoST v2", "file")
    require(validated, f"covost:{rest}", "it comes with Common Voice 4", "file")
    wanted = {split, "train_covost"} if split == "train" else {split}
    listed = tsv_rows(listing, ("path", "translation", "split"))
    missing = {row["path"]: row["translation"] for row, _ in listed if row["split"] in wanted}
    total = len(missing)
    for row, where in tsv_rows(validated, columns):
        if row["path"] in missing:
            yield row | {"translation": missing.pop(row["path"])}, where
    if missing:
        logging.warning(
            "covost:%s: %d of %d clips have no line in %s, one is %s; CoVoST v2 was made from"
            " Common Voice 4 (2019-12-10)",
            *(rest, len(missing), total, validated, min(missing)),
        )


def _find(top: pathlib.Path, lang: str, name: str) -> pathlib.Path:
    """The file `name` in ROOT/SRC or, if it is only there, in ROOT."""
    places = (top / lang / name, top / name)
    return next((place for place in places if place.is_file()), places[0])


def _with_clear_fault(u: Utterance) -> Utterance:
    """Correct libsndfile's reason, which is "no such file" for any file that is no MP3."""
    if not u.fault or not u.fault.startswith(f"{u.line}: cannot read"):
        return u
    why = "does not decode as MP3" if os.path.isfile(u.path) else "is missing from the folder"
    return dataclasses.replace(u, fault=f"{u.line}: {u.path} {why}; unpack the archive again")
