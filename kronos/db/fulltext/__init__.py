"""The full-text indexes, and how texts are folded for them."""
