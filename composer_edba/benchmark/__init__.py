"""Benchmarks: what EDBA costs. Run ``python -m composer_edba.benchmark``."""
