"""The program of a group that ends last, which goes on with what all of them stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last(counter_ptr, programs):
    """Return whether all other of `programs` programs were here before; the counter is 0 again.

    What they stored before is then visible to this one, in loads that do not use the L1 cache.
    """
    tl.debug_barrier()  # all threads of this program have stored
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1
    tl.store(counter_ptr, 0, mask=last)
    tl.debug_barrier()
    return last
