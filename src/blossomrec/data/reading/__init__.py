"""Reading tables of events: files and frames, columns, ids, options."""
