"""Every table, read and written over one open transaction."""
