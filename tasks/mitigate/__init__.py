"""Taking memories out of a model."""
