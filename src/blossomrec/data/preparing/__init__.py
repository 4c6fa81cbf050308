"""Steps from a table of events of any size to a prepared log, a part of it in memory."""
