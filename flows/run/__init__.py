"""A run: what was asked (spec), what results go by (ids), what is to be done (work), and the doing (execution)."""
