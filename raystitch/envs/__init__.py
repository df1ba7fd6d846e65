"""Simulators: make an environment from plain data, flatten its observations, set its state, reference returns.

A new simulator is a line in ``SETTERS``. tests/envs tells when it broke.
"""
