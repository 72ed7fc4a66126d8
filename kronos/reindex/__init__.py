"""Batch jobs that bring a space up to date, or to another model."""
