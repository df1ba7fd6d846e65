"""The page that the endpoint serves at ``/``: static files only, no build step, no request to any other host.

``main.js`` wires the page together; ``api.js`` is the only module that talks to the server; ``accept.js``,
``compose.js``, ``own.js`` and ``scale.js`` know no page and hold what is computed; the others draw.
tests/browser tells whether it works.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the files lie; ``index.html`` is the page, the others are served below ``/studio/``."""
