"""The page that the endpoint serves at ``/``: static files only, no build step, no request to any other host.

``main.js`` wires the page together. Only ``api.js`` talks to the server. ``accept.js``, ``compose.js``, ``own.js``,
``link.js`` and ``scale.js`` compute and do not touch the page; ``pick.js`` makes the first choice; the others draw.
tests/browser tells when it broke.
"""
