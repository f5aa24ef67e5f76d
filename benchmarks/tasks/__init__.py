"""Other tasks, a few seconds a run."""
