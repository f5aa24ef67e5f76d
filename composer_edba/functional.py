"""The mathematics of EDBA in plain torch: last-layer gradient norms, equation 1, and the choice of a subset.

No state and no framework; a face of :mod:`composer_edba.method`. Source of the method: Simionescu and Stoica,
"Efficient Dynamic Batch Adaptation", AAAI-23 student abstract.
"""

from composer_edba.method.averages import Averages
from composer_edba.method.candidates import SubsetSizeLaw
from composer_edba.method.choice import Criterion, Selection, select_subset
from composer_edba.method.equation import (
    gradient_inner_products,
    margin_loss,
    prefix_gradient_norms,
    subset_gradient_norms,
)
from composer_edba.method.gradient_mass import gradient_norms, select_by_gradient_mass

__all__ = [
    "Averages",
    "Criterion",
    "Selection",
    "SubsetSizeLaw",
    "gradient_inner_products",
    "gradient_norms",
    "margin_loss",
    "prefix_gradient_norms",
    "select_by_gradient_mass",
    "select_subset",
    "subset_gradient_norms",
]
