"""Measurements (`docs/benchmarks.md`)."""
