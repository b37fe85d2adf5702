"""Retrieval engines side by side: cost of a query, memory, time of a build; `python -m benchmarks.retrieval --help`."""
