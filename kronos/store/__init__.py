"""What a program calls: `MemoryStore` and its services."""
