"""Figures for speed and quality, measured side by side. Nothing here is timed by the tests."""
