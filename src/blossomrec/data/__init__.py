"""From a table of events to packed batches: reading, log, split, batches, simulation."""
