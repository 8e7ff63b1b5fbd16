"""The Triton kernels as machine code, against their plain references."""

import pytest

from tests.unit.kernels.parity import (  # noqa: F401  (collected here)
    test_add_norm,
    test_add_norm_writes_what_autocast_reads,
    test_cross_entropy,
    test_glu,
    test_kernels_run_and_not_their_references,
    test_rope,
)

pytestmark = pytest.mark.gpu
