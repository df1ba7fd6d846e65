"""Stitching on demand over HTTP, without Ray: what a request may say, the batches it is computed in, what is answered.

``app.create_app`` puts it together; ``raystitch.cluster.serve.application`` runs it on Ray Serve.
"""
