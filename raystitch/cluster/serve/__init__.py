"""The endpoint on Ray Serve; a Serve config names it ``raystitch.cluster.serve:app``."""

from raystitch.cluster.serve.application import app

__all__ = ["app"]
