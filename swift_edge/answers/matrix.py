"""Matrices over the field of `residue`: sums, products, powers, transposes and determinants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swift_edge.answers import residue
from swift_edge.answers.residue import NoValueError, Residue

LARGEST_POWER: Final = 1000
"""Exponent of a matrix."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length, at least one cell."""

    rows: tuple[tuple[Residue, ...], ...]
    """Cells by row."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self.rows[0])

    def __add__(self, other: "Matrix") -> "Matrix":
        """Sum; `NoValueError` for different shapes."""
        if self.shape != other.shape:
            raise NoValueError
        pairs = zip(self.rows, other.rows, strict=True)
        return Matrix(tuple(tuple(a + b for a, b in zip(mine, theirs, strict=True)) for mine, theirs in pairs))

    def __matmul__(self, other: "Matrix") -> "Matrix":
        """Product; `NoValueError` for shapes that do not fit."""
        if self.shape[1] != other.shape[0]:
            raise NoValueError
        columns = list(zip(*other.rows, strict=True))
        return Matrix(tuple(tuple(_dot(row, column) for column in columns) for row in self.rows))

    def each(self, change: Callable[[Residue], Residue]) -> "Matrix":
        """Apply a function to every cell."""
        return Matrix(tuple(tuple(change(cell) for cell in row) for row in self.rows))

    @property
    def transposed(self) -> "Matrix":
        """The transpose."""
        return Matrix(tuple(zip(*self.rows, strict=True)))

    def power(self, exponent: int) -> "Matrix":
        """Power; `NoValueError` for one that is not square, has no inverse, or for a large exponent."""
        if self.shape[0] != self.shape[1] or abs(exponent) > LARGEST_POWER:
            raise NoValueError
        base = self if exponent >= 0 else self._reduced()[1]
        result = _identity(len(self.rows))
        for bit in bin(abs(exponent))[2:]:
            result = result @ result @ base if bit == "1" else result @ result
        return result

    def determinant(self) -> Residue:
        """Determinant; `NoValueError` for one that is not square."""
        if self.shape[0] != self.shape[1]:
            raise NoValueError
        try:
            return self._reduced()[0]
        except NoValueError:
            return residue.ZERO

    def _reduced(self) -> tuple[Residue, "Matrix"]:
        """Determinant and inverse, by elimination; `NoValueError` where the determinant is zero."""
        size = len(self.rows)
        rows = [[*mine, *unit] for mine, unit in zip(self.rows, _identity(size).rows, strict=True)]
        determinant = residue.ONE
        for place in range(size):
            pivot = next((row for row in range(place, size) if not residue.same(rows[row][place], residue.ZERO)), None)
            if pivot is None:
                raise NoValueError
            if pivot != place:
                rows[place], rows[pivot], determinant = rows[pivot], rows[place], -determinant
            determinant *= rows[place][place]
            rows[place] = [cell / rows[place][place] for cell in rows[place]]
            for other in range(size):
                if other != place:
                    factor = rows[other][place]
                    rows[other] = [cell - factor * by for cell, by in zip(rows[other], rows[place], strict=True)]
        return determinant, Matrix(tuple(tuple(row[size:]) for row in rows))


def _dot(row: tuple[Residue, ...], column: tuple[Residue, ...]) -> Residue:
    total = residue.ZERO
    for a, b in zip(row, column, strict=True):
        total += a * b
    return total


def _identity(size: int) -> Matrix:
    return Matrix(tuple(tuple(residue.ONE if a == b else residue.ZERO for a in range(size)) for b in range(size)))
