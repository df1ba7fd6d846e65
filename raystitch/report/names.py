"""Names of the files and folders of a run; imports nothing, so that who only looks is quick."""

TRIALS, BUFFER, STITCHER, FIGURES = "trials", "buffer", "stitcher", "figures"
"""Folders of a run."""
CONFIG_FILE, ENVIRONMENT_FILE, RESULTS_FILE, REPORT_FILE = (
    "config.yaml",
    "environment.json",
    "results.parquet",
    "report.html",
)
VALIDATION_FILE, GENERALISE_FILE, SEARCH_FILE = "validate.json", "generalise.json", "search.json"
POTENTIAL_FILE = "potential.json"
"""What weighting, joining and stitching promise on the run's data; see ``raystitch.data.potential``."""
PROGRESS_FILE, PLAN_FILE = "progress.json", "plan.json"
"""What the driver is at, and the trials of its grid; see ``raystitch.pipeline.status``."""
LOCK_FILE = ".lock"
"""The lock of a run's folder, and of a trial's."""
SETTINGS_FILE, METRICS_FILE, RETURNS_FILE, ERROR_FILE = "config.json", "metrics.jsonl", "returns.json", "error.txt"
"""Files of a trial."""
