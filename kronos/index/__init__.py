"""Search structures over one space's vectors, and their snapshots. Copies, never the truth."""
