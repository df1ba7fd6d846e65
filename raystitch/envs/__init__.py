"""Simulators: make an environment, flatten its observations, set its state, reference returns."""
