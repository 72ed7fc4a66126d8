"""Threads, locks, forks, shared work and progress. Nothing here knows what a memory is."""
