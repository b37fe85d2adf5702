"""Presets, the demo, statistics and the report."""
