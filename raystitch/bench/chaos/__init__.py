"""Faults done for real to ``augment`` and ``sweep``; the result is compared with an undisturbed run.

tests/cluster/test_chaos.py runs a small one.
"""
