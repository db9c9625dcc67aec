"""Names of data sources by their URI, and what an unknown URI may have meant."""

import difflib
import os
import pathlib
import re
from collections.abc import Sequence

# {pattern of a path: the scheme that reads such files}
SUGGESTED = {
    r"\.[ct]sv$": "table",
    r"\.tar$": "webdataset",
    r"cuts.*\.jsonl\.gz$": "lhotse",
    r"\.(parquet|arrow)$": "hf",
}


def name_of(uri: str) -> str:
    """The last component of a URI's path, without extension, options and ranges of shards:
    `a/cuts.jsonl.gz` gives cuts, `webdataset:b/train-{000..099}.tar` train."""
    path = (uri.partition(":")[2] or uri).partition("?")[0]
    path = re.sub(r"[-_.]*(\{\d+\.\.\d+\}|_OP_\d+\.\.\d+_CL_)", "", path)
    stem = pathlib.PurePath(path.removesuffix(".gz")).stem
    return stem or pathlib.PurePath(path).name


def suggest(uri: str, known: Sequence[str]) -> str:
    """End of the message on a URI without a known scheme: the nearest scheme, or the one that reads
    such files; "" if there is none."""
    scheme, colon, rest = uri.partition(":")
    near = difflib.get_close_matches(scheme, known, n=1) if colon else []
    fitting = next((s for pattern, s in SUGGESTED.items() if re.search(pattern, uri)), "")
    if near:
        return f"; did you mean '{near[0]}:{rest or 'REST'}'?"
    if not colon and (fitting or os.path.isdir(uri)):
        return f"; did you mean '{fitting or 'folder'}:{uri}'?"
    return ""
