"""What the devices compute alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlrcml_jax import devices, explain, export, functional
from hlrcml_jax.models.hlr import HLRPlusPlus
from hlrcml_jax.ranking import metrics
from hlrcml_jax.training.step import init_params

MODEL = HLRPlusPlus(dim=4, memory_slots=3)
PARAMS = init_params(jax.random.key(0), MODEL, 5, 6, 4)
USERS, ITEMS = np.arange(2), np.arange(3)
PREFS, MASK = np.array([[0, 1], [2, 3]]), np.ones((2, 2), bool)
ROWS = PARAMS["users"][:2], PARAMS["items"][:2], PARAMS["items"][PREFS], MASK


def mapped_product():
    product = devices.pmap(lambda x: x @ x)
    return product.lower(jnp.ones((devices.device_count(), 3, 3))).as_text()


LOWERED = {
    "mapped": mapped_product,
    "scores": lambda: functional._scores.lower(MODEL, PARAMS, USERS, ITEMS, PREFS, MASK).as_text(),
    "reasons": lambda: (
        explain._compiled(explain.shares, MODEL).lower(PARAMS["model"], *ROWS).as_text()
    ),
    "export": lambda: export.scoring_function(MODEL, PARAMS).mlir_module(),
}


@pytest.mark.parametrize("name", LOWERED)
def test_products_are_not_rounded(name):
    """Accelerators multiply in fewer bits, unless each product asks for all of them."""
    with jax.default_matmul_precision("bfloat16"):
        products = [
            line for line in LOWERED[name]().splitlines() if "stablehlo.dot_general" in line
        ]
    assert products
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_metrics_multiply_no_matrices():
    """They are compiled apart from what the devices share, in the device's own precision."""
    hits = jnp.zeros((2, 5))
    for definitions in metrics._SETS:
        measure = functools.partial(metrics.user_metrics, cutoffs=(3,), definitions=definitions)
        assert "dot_general" not in str(jax.make_jaxpr(measure)(hits, jnp.ones(2, int)))
