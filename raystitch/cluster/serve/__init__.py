"""The endpoint on Ray Serve; a Serve config names ``raystitch.cluster.serve:app``. tests/cluster/test_serve.py tells
when it broke."""

from raystitch.cluster.serve.application import app

__all__ = ["app"]
