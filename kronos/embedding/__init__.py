"""Everything that turns texts into vectors, and what tells two such things apart."""
