"""Studies of a finished run or buffer: does generated data generalise, explore or overfit?

Nothing here chooses a bridge. tests/pipeline/test_generalise.py tells when it broke.
"""
