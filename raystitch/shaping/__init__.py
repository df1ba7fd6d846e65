"""Three hooks on training data: weights of episodes, rewards of stored steps, returns-to-go. Numpy only.

Each is a hook with a Protocol, a registry and settings of its own (``config``); by default each is the identity.
"""
