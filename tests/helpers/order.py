"""The order of test files over workers: the longest first, so that all workers end together, and
those that share programs on one worker."""

# by CPU seconds, most first (results/README.md, "Tests")
LONGEST = (
    "tests/test_laws.py",
    "tests/train/test_loop.py",
    "tests/train/test_train.py",
    "tests/tasks/test_tasks.py",
    "tests/ops/ctc/test_ctc.py",
    "tests/objectives/test_data2vec.py",
    "tests/bilevel/test_gradients.py",
    "tests/objectives/test_birq.py",
    "tests/test_transcribe.py",
    "tests/test_evaluate.py",
    "tests/objectives/test_cpc.py",
    "tests/recipes/test_m2asr.py",
    "tests/inference/test_api.py",
    "tests/models/test_conformer.py",
    "tests/models/test_cnn_rnn.py",
    "tests/recipes/test_birq.py",
    "tests/objectives/test_hubert.py",
    "tests/models/test_decoder.py",
    "tests/models/test_wav2vec2.py",
    "tests/bilevel/test_accumulate.py",
    "tests/parallel/test_mesh.py",
    "tests/parallel/test_cluster.py",
    "tests/checkpoint/test_manager.py",
    "tests/data/test_bucket_lengths.py",
)
# {file: the file whose programs it runs}
TOGETHER = {"tests/faults/test_silent_rows.py": "tests/test_laws.py"}


def unit(nodeid: str) -> str:
    """The file of a test, or the one whose worker it runs on."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


def rank(nodeid: str) -> int:
    """Sort key of tests; stable sorting keeps the order within a file."""
    file = unit(nodeid)
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)
