"""Files of a run are written by renaming."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Lines that are appended or streamed; files of a folder that is renamed when it is complete
WRITTEN_IN_PLACE = {"monitoring/trackers.py", "transcribe.py", "train/run_lock.py"}
WRITTEN_IN_PLACE |= {"checkpoint/integrity.py", "export_checkpoint.py", "export/hf_tokenizer.py"}
WRITTEN_IN_PLACE |= {"export/tensors.py", "data/doctor/survey.py"}
WRITTEN_IN_PLACE |= {"comparison/processes.py"}


def test_every_file_is_written_by_renaming():
    """A killed process leaves the old one, not half of the new one."""
    writes = re.compile(
        r"""(?<!files)\.write_(text|bytes)\(|open\([^()]*["'][wax]b?\+?["']|savefig\(path"""
    )
    package = ROOT / "bljust_jax"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if writes.search(line)
    }
    assert found == WRITTEN_IN_PLACE
