"""What `KronosMemory` stands on: opening, threads, and how tasks wait for them."""
