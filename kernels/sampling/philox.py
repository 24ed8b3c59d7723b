"""A stream of unit normals that depends on two integers in device memory and nothing else.

A state is an int64 tensor (seed, counter). Philox4x32-10 (Salmon et al. 2011) makes four random
integers of each counter, and Box and Muller's transform four normals of these: value 4g + j of a
draw is normal j of counter + g. The stream depends neither on tiles nor on the implementation.
A CUDA graph reads the state anew at each replay, so its noise is fresh wherever the state is.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


def noise_state(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a state at the start of a seed's stream of normals, for `reparameterize`.

    Args:
        seed: a signed 64-bit integer.
        device: of the state, and of what is drawn from it.

    Returns:
        int64 [2], the seed and a counter. A draw advances the counter in place, on the device, so
            that each replay of a CUDA graph draws fresh numbers.
    """
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def random_state(device: torch.device) -> Tensor:
    """Return a state drawn from PyTorch's default generator of the device.

    Which CUDA graphs replay with fresh numbers, and checkpoints of its state restore.
    """
    return torch.randint(2**63 - 1, (2,), device=device)


# An operator of its own: of a plain clone() and add_(), torch.compile would keep the state for
# backward instead of the copy, and draw other noise there, since the state has moved on.
@torch.library.custom_op("fastunit::take_normals", mutates_args=("state",))
def take(state: Tensor, count: int) -> Tensor:
    """Return a copy of the state to draw `count` normals from, and advance it, in place.

    By exactly the counters these consume: draws never overlap, and none is left out.
    """
    taken = state.clone()
    state[1].add_(math.ceil(count / 4))
    return taken


@take.register_fake
def _(state, count):
    return torch.empty_like(state)


def normals_aten(state: Tensor, count: int) -> Tensor:
    """Return what `normals` draws, up to rounding: fp32, with up to 3 values over `count`."""
    mask = 2**32 - 1
    counter = state[1] + torch.arange(math.ceil(count / 4), device=state.device)
    c0, c1, c2, c3 = counter & mask, (counter >> 32) & mask, counter * 0, counter * 0
    k0, k1 = state[0] & mask, (state[0] >> 32) & mask
    for _ in range(10):
        # Products of 32-bit numbers overflow into int64's sign, but all their bits are right.
        p0, p2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (p2 >> 32) & mask ^ c1 ^ k0, (p0 >> 32) & mask ^ c3 ^ k1
        c1, c3 = p2 & mask, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    bits = torch.stack((c0, c1, c2, c3), -1)
    radius = (-2 * ((bits[:, ::2].float() + 1) * 2**-32).log()).sqrt()
    angle = bits[:, 1::2].int().float() * (math.pi * 2**-31)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten()


@triton.jit
def normals(state_ptr, start, BLOCK: tl.constexpr):
    """Return normals start, ..., start + BLOCK - 1 of a draw, fp32; start is a multiple of 4."""
    counter = tl.load(state_ptr + 1) + start // 4 + tl.arange(0, BLOCK // 4)
    # triton.jit is typed as if its functions never returned.
    a, b, c, d = tl.randint4x(tl.load(state_ptr), counter)  # pyright: ignore[reportGeneralTypeIssues]
    n0, n1 = _box_muller(a, b)
    n2, n3 = _box_muller(c, d)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def _box_muller(a, b):
    """Turn two random 32-bit integers into two unit normals, below 6.7 in size.

    `tl.randn4x` reduces its angle as if it could be any number: 124 instructions per value where
    these are 53 (sm_90, the whole of `reparameterize`), and a stack. Half the angle is at most
    pi/2, and these series give its sine and cosine to fp32 rounding.
    """
    radius = tl.sqrt(-2.0 * tl.log((a.to(tl.float32) + 1.0) * 2**-32))
    x = b.to(tl.int32, bitcast=True).to(tl.float32) * (3.141592653589793 * 2**-32)
    q = x * x
    sine = x - x * q * (1 / 6 - q * (1 / 120 - q * (1 / 5040 - q * (1 / 362880 - q / 39916800))))
    cosine = 1 / 24 - q * (1 / 720 - q * (1 / 40320 - q * (1 / 3628800 - q / 479001600)))
    cosine = 1.0 - q * (0.5 - q * cosine)
    return radius * (1.0 - 2.0 * sine * sine), radius * (2.0 * sine * cosine)
