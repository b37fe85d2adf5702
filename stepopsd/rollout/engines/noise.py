"""Sampling noise as a function of (call seed, token position, token id), so that neighbours in a batch cannot matter.

One 64-bit state per row and position comes from splitmix64; the vocabulary axis is hashed on the device with the
32-bit murmur3 finaliser inside int64 (torch has no unsigned arithmetic on all devices).
Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; Gumbel-max: Maddison,
Tarlow & Minka, "A* sampling", NeurIPS 2014.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

LOW = 0xFFFFFFFF
GOLDEN = 0x9E3779B97F4A7C15


def row_states(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """splitmix64 of each row's stream at each row's position.

    Args:
        seeds: (N,) uint64.
        positions: (N,) int64, index of the token inside its completion.

    Returns:
        (N,) uint64.
    """
    z = seeds + np.uint64(GOLDEN) * (positions.astype(np.uint64) + np.uint64(1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def gumbel(states: NDArray[np.uint64], vocab: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise for every token of every row.

    Args:
        states: (N,) uint64 from ``row_states``.
        vocab: Vocabulary size V.
        device: Where the noise is made.

    Returns:
        (N, V) float32; finite.
    """
    low = torch.from_numpy((states & np.uint64(LOW)).astype(np.int64)).to(device)[:, None]  # (N, 1)
    high = torch.from_numpy((states >> np.uint64(32)).astype(np.int64)).to(device)[:, None]
    ids = torch.arange(vocab, device=device, dtype=torch.int64)[None, :] * 0x9E3779B1  # (1, V)
    bits = _finalise(_finalise((ids & LOW) ^ low) ^ high)  # (N, V)
    # log1p keeps the upper tail: with 1 - v in fp32 nothing beyond 16.6 could be drawn, with v itself up to 22.9.
    v = ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return -torch.log(-torch.log1p(-v))


def _finalise(x: torch.Tensor) -> torch.Tensor:
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & LOW
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & LOW
    return x ^ (x >> 16)
