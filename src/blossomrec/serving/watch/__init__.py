"""What comes of what is served: hits among recommendations, drift, versions of the model."""
