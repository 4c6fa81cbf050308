"""What is measured of blossomrec, and the tables of the docs: ``python -m benchmarks VERB``."""
