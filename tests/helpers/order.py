"""The order of test files over workers: the longest first, so that all workers end together, and
those that share programs on one worker."""

# by CPU seconds, most first (results/README.md, "Tests")
LONGEST = (
    "tests/test_laws.py",
    "tests/train/test_loop.py",
    "tests/faults/test_run.py",
    "tests/tasks/test_tasks.py",
    "tests/docs/test_scenario.py",
    "tests/recipes/test_m2asr.py",
    "tests/bilevel/test_alike.py",
    "tests/configs/test_phase_laws.py",
    "tests/train/test_train.py",
    "tests/train/test_init_from.py",
    "tests/models/test_cnn_rnn.py",
    "tests/models/test_conformer.py",
    "tests/ops/ctc/test_ctc.py",
    "tests/test_main.py",
    "tests/parallel/test_mesh.py",
    "tests/checkpoint/test_old_workdir.py",
    "tests/bilevel/test_gradients.py",
    "tests/train/test_dry_run.py",
    "tests/objectives/test_shared_forward.py",
    "tests/data/test_corpus.py",
    "tests/bilevel/test_shared_phases.py",
    "tests/models/test_wav2vec2.py",
    "tests/objectives/test_birq.py",
    "tests/benchmarks/test_compile.py",
)
# {file: the file whose programs it runs}
TOGETHER = dict.fromkeys(
    ("tests/faults/test_silent_rows.py", "tests/bilevel/test_accumulate.py"), "tests/test_laws.py"
)


def unit(nodeid: str) -> str:
    """The file of a test, or the one whose worker it runs on."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


def rank(nodeid: str) -> int:
    """Sort key of tests; stable sorting keeps the order within a file."""
    file = unit(nodeid)
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)
