"""A model that is brought up to date: weights by external id, new items, new events, replay."""
