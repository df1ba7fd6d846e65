"""Actors and tasks around functions that run without Ray. No other package imports ray.

tests/cluster tells when it broke.
"""

import os

# Ray reads these once, when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Hides Ray's report of actors that were stopped because there are enough bridges. Other deaths are still shown.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"killed by `ray\.kill`")
