"""Everything that turns texts into vectors, and fingerprints that tell models apart."""
