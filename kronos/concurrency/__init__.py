"""Threads, locks, forks, progress: nothing here knows what a memory is."""
