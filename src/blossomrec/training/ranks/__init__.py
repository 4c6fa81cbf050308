"""A training of several ranks: how they are started, update weights and checkpoint.

Each module is what one of the training of a rank alone is, for all of them together.
"""
