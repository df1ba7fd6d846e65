"""Trajectories in and out: columnar episodes, Minari, D4RL HDF5, the demo maze.

A new source is a function and a line in load.py. tests/data tells when it broke.
"""
