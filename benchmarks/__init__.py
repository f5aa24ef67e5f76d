"""The laboratory: what EDBA is worth and what it costs. Run ``python -m benchmarks`` from a clone.

* ``suites``: training runs as data (suite, cell, arm, seed), how each is done, recorded and gone on with;
* ``comparators``: the algorithms that EDBA is compared with, and what looks over its shoulder;
* ``reports``: tables, pictures and a page from the lines that a suite left in ``docs/results``;
* ``cost``: time and memory of a step, which need no training;
* ``machine``: what all of it was measured on.
"""
