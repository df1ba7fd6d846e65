"""Trajectories in and out: columnar episodes, Minari, D4RL HDF5, the demo maze."""
