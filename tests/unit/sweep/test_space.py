import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from restomod.sweep.space import Parameter, distribution


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (Parameter(value=3), CategoricalDistribution([3])),
        (Parameter(values=[1, "50B", True]), CategoricalDistribution([1, "50B", True])),
        (Parameter(values=[[0.9, 0.98], [0.9, 0.95]]),
         CategoricalDistribution(["[0.9, 0.98]", "[0.9, 0.95]"])),
        (Parameter(min=1, max=4), IntDistribution(1, 4)),
        (Parameter(min=1, max=4.0), FloatDistribution(1, 4)),
        (Parameter(min=1, max=4, distribution="uniform"), FloatDistribution(1, 4)),
        (Parameter(min=1e-4, max=1e-2, distribution="log_uniform_values"),
         FloatDistribution(1e-4, 1e-2, log=True)),
        (Parameter(min=-2, max=0, distribution="log_uniform"),
         FloatDistribution(math.exp(-2), 1, log=True)),
        # Multiples of q, wherever min and max lie.
        (Parameter(min=0.3, max=1.2, q=0.25, distribution="q_uniform"),
         FloatDistribution(0.5, 1.0, step=0.25)),
        (Parameter(min=1, max=7, q=2, distribution="q_uniform"), FloatDistribution(2, 6, step=2)),
    ],
)  # fmt: skip
def test_distributions_mean_what_wandb_means(parameter, expected):
    assert distribution(parameter) == expected
