"""Runs described by YAML: ``python -m composer_edba.train RUN key=value ...``."""
