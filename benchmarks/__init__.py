"""Benchmarks: what the ops cost, next to what people write without them."""
