"""Checks, repair and compaction of a store."""
