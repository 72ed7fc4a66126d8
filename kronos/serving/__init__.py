"""Which space serves, and how an open store follows a change of it."""
