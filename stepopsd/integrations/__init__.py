"""Adapters to other people's trainers; each host is imported by its own adapter only."""
