"""Statistics, figures and the HTML page of a run; reads files only.

tests/report tells when it broke; the statistics are compared with other implementations there.
"""
