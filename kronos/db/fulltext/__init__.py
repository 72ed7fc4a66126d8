"""The full-text indexes of SQLite (FTS5), and how texts are folded for them."""
