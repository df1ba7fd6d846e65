"""Real faults done to ``augment`` and ``sweep``, whose results are compared with those of undisturbed runs."""
