"""A log that grows: events appended as segments, merged into a generation, users forgotten."""
