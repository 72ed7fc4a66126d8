"""Indexes over one space's vectors, and their snapshots. They are copies, never the truth."""
