"""Reader of Common Voice: `commonvoice:DIR/SPLIT`, DIR the folder of a language.

The published layout, in any release (Ardila et al., Common Voice, LREC 2020):

    DIR/SPLIT.tsv    client_id, path, sentence and others; train, dev, test, validated, other
    DIR/clips/       common_voice_nl_17690842.mp3
"""

import difflib
import pathlib

from bljust_jax.common.errors import UserError
from bljust_jax.data.listings import report_unlabelled, text_of, tsv_rows
from bljust_jax.data.sources import Utterance, inside, require, with_durations


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of one split, in the order of its table.

    id: the clip's name without extension; speaker: client_id; lang: locale, if the table has it.
    Durations come from the MP3 headers. A clip that is missing has a `fault`. Raises UserError for
    a missing folder, table or column, a malformed line, or a folder or clip outside a given `root`.
    """
    table, clips = _locate(rest, root)
    found = []
    for row, where in tsv_rows(table, ("path", "sentence", "client_id"), ("locale",)):
        name = row["path"]
        if not name or name != pathlib.PurePath(name).name or "\0" in name:
            raise UserError(f"{where}: {name!r} is no file name; write it without a path")
        name = name if pathlib.PurePath(name).suffix else f"{name}.mp3"  # of the first releases
        path = inside(clips / name, root or str(clips), where)
        missing = "" if (clips / name).is_file() else f"{where}: {clips / name} is missing"
        found.append(
            Utterance(
                id=pathlib.PurePath(name).stem,
                path=path,
                offset=0.0,
                duration=0.0,
                text=text_of(row["sentence"]),
                lang=row.get("locale", ""),
                speaker=row["client_id"] or name,
                line=where,
                fault=missing and f"{missing}; unpack the archive again",
            )
        )
    return report_unlabelled(with_durations(found), f"commonvoice:{rest}")


def listing(rest: str, root: str = "") -> list[pathlib.Path]:
    """The file that declares the utterances."""
    path = pathlib.Path(root, rest.removesuffix(".tsv")).absolute()
    return [path.with_name(f"{path.name}.tsv")]


def _locate(rest: str, root: str) -> tuple[pathlib.Path, pathlib.Path]:
    """(table of the split, folder of the clips)"""
    path = pathlib.Path(root, rest.removesuffix(".tsv")).absolute()
    top = path.parent
    inside(top, root, f"commonvoice:{rest}")
    cure = "name DIR/SPLIT, DIR the language's folder with clips and its tables"
    require(top / "clips", f"commonvoice:{rest}", cure)
    table = top / f"{path.name}.tsv"
    if not table.is_file():
        splits = sorted(p.stem for p in top.glob("*.tsv") if not p.name.startswith("."))
        near = difflib.get_close_matches(path.name, splits, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        there = ", ".join(splits) or "none"
        cure = f"name DIR/SPLIT{hint} Tables there: {there}"
        raise UserError(f"commonvoice:{rest}: no such file: {table}; {cure}")
    inside(table, root, f"commonvoice:{rest}")
    return table, top / "clips"
