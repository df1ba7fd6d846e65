"""Bridges against the simulator, and the effect of delta and the criteria.

Nothing here chooses a bridge. tests/pipeline/test_validate.py tells when it broke.
"""
