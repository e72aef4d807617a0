"""Pieces of the photographs that scikit-learn brings along."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images


def patches(count: int, side: int) -> NDArray[np.float32]:
    """``[count, 3 * side * side]`` in [0, 1], channels first: squares of the photographs, six by six pixels to one."""
    found = []
    for number in range(count):
        image = load_sample_images().images[number % 2]
        top, left = 20 + 40 * (number // 2), 30 + 60 * (number // 2)
        square = image[top : top + 6 * side, left : left + 6 * side]
        small = square.reshape(side, 6, side, 6, 3).mean(axis=(1, 3))
        found.append(small.transpose(2, 0, 1).reshape(-1) / 255)
    return np.stack(found).astype(np.float32)
