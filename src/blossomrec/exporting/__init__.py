"""What leaves the project: a trained model for other engines, as graphs or as vectors."""
