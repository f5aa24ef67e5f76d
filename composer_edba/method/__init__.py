"""The method in plain torch and Python: equation 1, candidates, the choice, the batch size. No framework, no loader."""
