"""The pipeline on Ray: actors and tasks around functions that run without it. Only this package imports Ray, and the
faults that are done to it in ``bench/chaos``. tests/cluster tells when it broke."""

import os

# Ray reads these once, so they are set before any module here imports it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Hide Ray's reports of actors that were stopped on purpose, because there are enough bridges; show other deaths.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"killed by `ray\.kill`")
