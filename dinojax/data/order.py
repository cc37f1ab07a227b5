"""The order of images as a pure function of (seed, epoch, position). No state, no table.

Each epoch is a keyed permutation of 0..n-1: an alternating Feistel network over the smallest
power of two that holds n, repeated on values that fall outside (cycle walking; Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002). The cost of an element does not depend on n. Grain
has such a shuffle too, but its order may change with a release and its key is seed + epoch, so that
epoch 1 of seed 0 is epoch 0 of seed 1.
"""

import math

import numpy as np

# These two numbers are part of the meaning of a seed: a change reorders every run.
NUM_ROUNDS = 8
MIN_BITS = 6  # below this the network has too few different permutations

_MASK = 2**64 - 1


def image_index(seed: int, position: np.ndarray, num_images: int) -> np.ndarray:
    """Index int64 [...] of the image at each global `position` (images consumed before it).

    Positions count on through epochs: epoch = position // num_images, and within an epoch every
    image comes exactly once.
    """
    if num_images < 1:
        raise ValueError(f"an order needs at least one image, got num_images={num_images}.")
    position = np.asarray(position, dtype=np.int64)
    if position.size and position.min() < 0:
        raise ValueError(f"a position counts images and starts at 0, got {position.min()}.")
    flat = position.reshape(-1)
    epoch = (flat // num_images).astype(np.uint64)
    index = (flat % num_images).astype(np.uint64)
    key = _mix(_mix(np.full_like(epoch, seed & _MASK)) ^ epoch)
    bits = max(MIN_BITS, (num_images - 1).bit_length())

    outside = np.arange(len(index))  # every value takes at least one turn
    while len(outside):
        index[outside] = _permute(index[outside], key[outside], bits)
        outside = outside[index[outside] >= num_images]
    return index.astype(np.int64).reshape(position.shape)


def pick(seed: int, position: int, num: int) -> int:
    """One of `num` things for a position, the same in every run; evenly over positions."""
    mixed = _mix(_mix(np.array([seed & _MASK], np.uint64)) ^ np.array([position], np.uint64))
    return int(mixed[0]) % num


def substitute(index: int, attempt: int, num_images: int) -> int:
    """Another image in place of `index`, the same in every run; attempts 0, 1, 2 ... differ.

    Attempts walk through all other images: a keyed start, then a keyed stride without a common
    factor with their number. So a readable image is found if there is one, and images next to a
    damaged one (a lost disk block, one bad shard) are not favoured.
    """
    others = num_images - 1
    if not 0 <= attempt < others:
        raise ValueError(f"{num_images} images leave {others} substitutes, not {attempt + 1}.")
    start, stride = _mix(np.array([2 * index, 2 * index + 1], np.uint64)).tolist()
    stride = stride % others or 1
    while math.gcd(stride, others) > 1:
        stride += 1
    return (index + 1 + (start + attempt * stride) % others) % num_images


def _permute(index: np.ndarray, key: np.ndarray, bits: int) -> np.ndarray:
    """A permutation of 0..2**bits - 1 per key: halves take turns at being changed by the other."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = index & low_mask, index >> low_bits
    for number in range(NUM_ROUNDS):
        round_key = _mix(key + np.uint64(number + 1))
        if number % 2:
            high ^= _mix(low ^ round_key) & high_mask
        else:
            low ^= _mix(high ^ round_key) & low_mask
    return (high << low_bits) | low


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: every input bit flips every output bit half of the time."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
