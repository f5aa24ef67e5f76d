"""Suites of training runs: cells, arms and seeds, as data, and how they are run and recorded."""
