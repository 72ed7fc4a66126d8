"""From a question to the keys that may answer it."""
