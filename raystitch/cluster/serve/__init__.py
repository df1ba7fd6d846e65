"""The endpoint on Ray Serve; ``raystitch.cluster.serve:app`` is what a Serve config names."""

from raystitch.cluster.serve.application import app

__all__ = ["app"]
