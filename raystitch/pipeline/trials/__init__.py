"""From a grid to trained policies: the plan, one trial, its folder, the search, the checks before.

A resumed trial equals an uninterrupted one: tests/pipeline and tests/files/test_damage.py.
"""
