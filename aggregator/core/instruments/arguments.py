"""What the pricing functions accept: finite numbers, and nothing that would turn into NaN further on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aggregator.domain.units import Floats

Bools = npt.NDArray[np.bool_]


def finite(name: str, values: npt.ArrayLike) -> Floats:
    """Return ``values`` as floats.

    Raises:
        ValueError: one is NaN or infinite; the message names the argument.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, not NaN or infinite")
    return array


def not_negative(name: str, values: npt.ArrayLike) -> Floats:
    """Return ``values`` as floats; like :func:`finite`, and none may be below 0."""
    array = finite(name, values)
    if (array < 0).any():
        raise ValueError(f"{name} must not be negative")
    return array


def positive(name: str, values: npt.ArrayLike) -> Floats:
    """Return ``values`` as floats; like :func:`finite`, and all must be above 0."""
    array = finite(name, values)
    if not (array > 0).all():
        raise ValueError(f"{name} must be positive")
    return array


def flags(name: str, values: npt.ArrayLike) -> Bools:
    """Return ``values`` as booleans; only True, False, 1 and 0 are taken."""
    array = np.asarray(values)
    if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{name} must be true or false (1 or 0)")
    return array.astype(np.bool_)


def in_range(name: str, result: Floats) -> Floats:
    """Return ``result`` if it is finite.

    Raises:
        ValueError: it overflowed; ``name`` says which arguments are too large together.
    """
    if not np.isfinite(result).all():
        raise ValueError(f"{name}: too large together, the result is not a finite number")
    return result
