"""One version of a model as it is served, with all that belongs to it alone."""
