"""Runs described by YAML: ``python -m composer_edba.train CONFIG key=value ...``."""
