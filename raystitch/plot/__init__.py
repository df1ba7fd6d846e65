"""Pictures of data, bridges and results: ``rs.plot``. The report and ``buffer show`` draw with the same code.

Every function takes objects of this package and, if wanted, the axes to draw on, and returns the axes. pyplot is
imported by the first function that makes a figure of its own; without a display it draws into memory. tests/plot tells
when it broke.

Example:
    >>> ax = rs.plot.acceptance(buffer)
    >>> ax.figure.savefig("acceptance.png")
"""

from raystitch.plot.numbers import acceptance, gaps, residuals, returns
from raystitch.plot.states import bridge, bridges, episodes

__all__ = ["acceptance", "bridge", "bridges", "episodes", "gaps", "residuals", "returns"]
