"""Why an item has its score: the shares of the events of a history."""
