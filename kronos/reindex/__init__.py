"""Reindex jobs: they fill a space, and switch the store to it."""
