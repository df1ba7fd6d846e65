"""Faults done for real to ``augment`` and ``sweep``; the result is compared with an undisturbed run.

tests/bench/chaos runs a small one.
"""
