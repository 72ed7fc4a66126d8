"""Checks of everything that must agree, and compaction."""
