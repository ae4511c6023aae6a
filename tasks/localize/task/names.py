"""What the ids of all kinds of sets begin with, and what the widest scope is called."""

VERSION = "localize/3"
ALL = "all"
"""Scope of the sets found for all memorized prompts together."""
