"""The page that the endpoint serves at ``/``: static files only, no build step, no request to any other host.

``main.js`` wires the page together; ``api.js`` is the only module that talks to the server; ``accept.js``,
``compose.js``, ``own.js``, ``link.js`` and ``scale.js`` know no page and hold what is computed; ``pick.js`` makes the
first choice; the others draw. tests/browser tells whether it works.
"""
