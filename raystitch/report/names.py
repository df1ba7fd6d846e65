"""What things are called in the report: the one place for names of algorithms and baselines."""

ALGORITHMS: dict[str, tuple[str, str]] = {
    "td3bc": ("TD3+BC", "TD3+BC"),
    "iql": ("IQL", "IQL"),
    "dt": ("Decision Transformer", "DT"),
    "bc": ("Behaviour cloning", "BC"),
}
"""Algorithm -> (full name, name in narrow tables); one that is not here is called by its key."""

DATA_ORDER = ("original", "weighted", "duplicated", "joined", "stitched")

UNQUALIFIED = "no qualification"
"""Name of the baseline of stitched data read at delta off."""

BASELINE_WORDS = {
    "original": "the original data",
    "weighted": "the original data weighted by return",
    "duplicated": "the original data duplicated",
    "joined": "real fragments joined without a bridge",
    "no": "bridges without qualification",
}
"""First word of a baseline's name -> what sentences call it."""


def algorithm_name(algo: str) -> str:
    return ALGORITHMS.get(algo, (algo, algo))[0]


def short_name(algo: str) -> str:
    return ALGORITHMS.get(algo, (algo, algo))[1]
