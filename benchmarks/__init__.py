"""Benchmarks: what EDBA costs. Run ``python -m benchmarks``."""
