"""Which prompts look memorized by a model of which nobody knows what it has memorized."""
