"""Recommendations for users of a log: histories in packed batches, and files for many users."""
