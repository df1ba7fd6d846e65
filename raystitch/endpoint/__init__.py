"""Stitching on demand over HTTP, without Ray: requests, the batches that they are computed in, answers.

``app.create_app`` puts it together; ``raystitch.cluster.serve.application`` runs it on Ray Serve. docs/endpoint.md
fixes the wire; tests/endpoint tells when it broke.
"""
