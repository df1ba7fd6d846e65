"""The only package that imports ray."""

import os

# Before any module here imports ray, which reads these once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's report of actors that were stopped on purpose, because there are enough bridges. Other deaths are still shown.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"killed by `ray\.kill`")
