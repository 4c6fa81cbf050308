"""Parts of making batches: how much events count, and elements made ahead."""
