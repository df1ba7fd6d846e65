"""Bridges against the simulator, and what the criteria bought."""
