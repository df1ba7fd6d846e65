"""Turns pairs of trajectories into bridges, in five stages: pairs, gap, bridge, wrap-up, qualification."""
