"""Which channels go together: a union-find over atoms, the places along axes that can be cut away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Labels = np.ndarray[Any, Any]
"""An axis: the atom at each place, int64 (n,)."""
NEVER = 0
"""The atom of places that are never cut away."""


class Atoms:
    """Atoms are cut away together where they are one; some never are.

    An atom may stand for ``a ∨ b``: it goes where one of two others goes. So a place of an axis that a Reshape made
    of heads and their channels goes with its head, or with that channel of every head.
    """

    def __init__(self) -> None:
        self.causes: list[str] = ["", "it is no axis of channels"]
        """Why atoms are never cut away, by number; 0: they may be."""
        self._parent = np.arange(1024)
        self._frozen = np.zeros(1024, np.int32)
        self._either = np.full((1024, 2), -1)
        self._count = 1
        self._frozen[NEVER] = 1
        self._known: dict[int, int] = {}
        """By ``a << 32 | b``, the atom that stands for ``a ∨ b``."""
        self._settled: dict[int, tuple[Labels, Labels]] | None = None

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int) -> Labels:
        """Return ``count`` new atoms."""
        first, self._count = self._count, self._count + count
        while self._count > len(self._parent):
            size = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(size, 2 * size)])
            self._frozen = np.concatenate([self._frozen, np.zeros(size, np.int32)])
            self._either = np.concatenate([self._either, np.full((size, 2), -1)])
        return np.arange(first, self._count)

    def find(self, labels: Labels) -> Labels:
        """Return the atom that stands for each one's class."""
        found: Labels = self._parent[labels]
        while True:
            above = self._parent[found]
            if (above == found).all():
                break
            found = above
        self._parent[labels] = found
        return found

    def cause(self, labels: Labels) -> Labels:
        """Return the number of the cause why each is never cut away, 0 where it may be."""
        found: Labels = self._frozen[self.find(labels)]
        return found

    def why(self, labels: Labels) -> str:
        """Return the first cause why these, or what they stand for, are never cut away."""
        waiting = labels[:1].tolist()
        while waiting:
            atom = self._root(waiting.pop())
            if cause := int(self._frozen[atom]):
                return self.causes[cause]
            waiting += [part for part in self._either[atom].tolist() if part >= 0]
        return ""

    def freeze(self, labels: Labels, cause: str) -> None:
        """Let these never be cut away."""
        self.causes.append(cause)
        self._freeze(labels, np.full(len(labels), len(self.causes) - 1))

    def _freeze(self, labels: Labels, causes: Labels) -> None:
        while len(labels):
            roots = self.find(labels)
            new = self._frozen[roots] == 0
            roots, causes = roots[new], causes[new]
            self._frozen[roots] = causes
            parts = self._either[roots]
            compound = parts[:, 0] >= 0
            labels, causes = parts[compound].reshape(-1), np.repeat(causes[compound], 2)

    def unify(self, a: Labels, b: Labels) -> None:
        """Let ``a[i]`` and ``b[i]`` be cut away together, for each i."""
        a, b = self._plain(a), self._plain(b)
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        fa, fb = self._frozen[a], self._frozen[b]
        if fa.any() or fb.any():
            self._freeze(b[fa > 0], fa[fa > 0])
            self._freeze(a[fb > 0], fb[fb > 0])
            a, b = self.find(a), self.find(b)
            free = (self._frozen[a] == 0) & (self._frozen[b] == 0) & (a != b)
            a, b = a[free], b[free]
        if not len(a):
            return
        if (self._either[b, 0] >= 0).any():
            a, b = b, a
        if (self._either[b, 0] < 0).all() and _distinct(b) and self._apart(a, b):
            self._parent[b] = a
            return
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            self._join(x, y)

    def _plain(self, labels: Labels) -> Labels:
        """Return what goes with each: of ``a ∨ b`` where one of them is never cut away, the other."""
        roots = self.find(labels)
        while True:
            parts = self._either[roots]
            frozen = self._frozen[parts] > 0
            one = (parts[:, 0] >= 0) & (self._frozen[roots] == 0) & (frozen[:, 0] != frozen[:, 1])
            if not one.any():
                return roots
            roots = roots.copy()
            roots[one] = self.find(np.where(frozen[one, 0], parts[one, 1], parts[one, 0]))

    def _apart(self, a: Labels, b: Labels) -> bool:
        """Return whether no ``b`` is among ``a`` and what those stand for."""
        parts = self._leaves(a)
        if b.min() > max(a.max(), parts.max()):  # they are newer, which is the usual case and soon seen
            return True
        return not (np.isin(b, a).any() or np.isin(b, parts).any())

    def _root(self, atom: int) -> int:
        while (above := int(self._parent[atom])) != atom:
            atom = above
        return atom

    def _join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if a == b:
            return
        one, other = self._frozen[a], self._frozen[b]
        if one or other:
            self._freeze(np.array([a, b]), np.array([one or other] * 2))
            return
        left, right = self._either[[a, b], 0].tolist()
        if left >= 0 and right >= 0:
            self._join_compounds(a, b)
            return
        if left < 0 and right < 0:
            self._parent[b] = a
            return
        free, compound = (a, b) if left < 0 else (b, a)
        parts = self._parts(compound)
        if free not in parts:
            self._parent[free] = compound
            return
        for part in parts - {free}:  # it goes where itself or another goes: all of them go together
            self._join(free, part)
        self._either[compound] = -1
        self._parent[compound] = self._root(free)

    def _join_compounds(self, a: int, b: int) -> None:
        """Let two atoms stand for the same others: pairs of these go together, as few as make it so."""
        first, second = self._parts(a), self._parts(b)
        if not first & second:
            pairs = list(zip(*self._either[[a, b]].tolist(), strict=True))
        else:
            common = sorted(first & second)
            only, other = sorted(first - second), sorted(second - first)
            count = max(len(only), len(other))
            only, other = ((some or common[:1]) for some in (only, other))
            pairs = [(only[min(i, len(only) - 1)], other[min(i, len(other) - 1)]) for i in range(count)]
        for x, y in pairs:
            self._join(x, y)
        a, b = self._root(a), self._root(b)
        if (self._either[[a, b], 0] < 0).any():
            self._join(a, b)
        elif a != b:
            a, b = (b, a) if self._holds(a, b) else (a, b)
            self._parent[b] = a

    def _holds(self, atom: int, part: int) -> bool:
        """Return whether ``atom`` is ``part``, or stands for it among others."""
        atom = self._root(atom)
        return atom == part or any(
            self._holds(each, part) for each in self._either[atom].tolist() if each >= 0
        )

    def _parts(self, atom: int) -> set[int]:
        atom = self._root(atom)
        a, b = self._either[atom].tolist()
        return {atom} if a < 0 else self._parts(a) | self._parts(b)

    def either(self, a: Labels, b: Labels) -> Labels:
        """Return atoms that go where ``a[i]`` or ``b[i]`` goes."""
        a, b = self.find(a), self.find(b)
        made = np.where(self._frozen[a] > 0, b, a)
        both = (self._frozen[a] == 0) & (self._frozen[b] == 0) & (a != b)
        pairs = (a[both] << 32 | b[both]).tolist()
        found = list(map(self._known.get, pairs))
        if None in found:
            new = list(dict.fromkeys(pair for pair, atom in zip(pairs, found, strict=True) if atom is None))
            atoms = self.fresh(len(new))
            self._either[atoms] = np.stack(np.divmod(new, 1 << 32), axis=1)
            self._known.update(zip(new, atoms.tolist(), strict=True))
            found = [self._known[pair] for pair in pairs]
        made[both] = found
        return made

    def settle(self) -> None:
        """Say that nothing will be tied any more: what is asked again is remembered."""
        self.find(np.arange(self._count))
        self._settled = {}

    def leaves(self, labels: Labels) -> Labels:
        """Return the atoms that each place goes with, (depth, n): :data:`NEVER` where there are fewer."""
        if self._settled is None:
            return self._leaves(labels)
        known = self._settled.get(id(labels))
        if known is None:  # the labels are kept too, so that no other array gets their id
            known = self._settled[id(labels)] = labels, self._leaves(labels)
        return known[1]

    def _leaves(self, labels: Labels) -> Labels:
        layers, done = [self.find(labels)], []
        while layers:
            roots = layers.pop()
            parts = self._either[roots]
            compound = parts[:, 0] >= 0
            if compound.any():
                layers += [self.find(np.where(compound, parts[:, i], roots * (i == 0))) for i in (1, 0)]
            else:
                done.append(np.where(self._frozen[roots] > 0, NEVER, roots))
        found: Labels = np.stack(done)
        return found

    # --- axes that are products of others -----------------------------------------------------------------------------

    def merge(self, axes: Sequence[Labels]) -> Labels:
        """Return the axis that a Reshape makes of several."""
        flat = axes[0]
        for axis in axes[1:]:
            if (self._frozen[self.find(axis)] > 0).all():
                flat = np.repeat(flat, len(axis))
            elif (self._frozen[self.find(flat)] > 0).all():
                flat = np.tile(axis, len(flat))
            else:
                flat = self.either(np.repeat(flat, len(axis)), np.tile(axis, len(flat)))
        return flat

    def grid(self, labels: Labels, shape: Sequence[int]) -> list[Labels]:
        """Return the axes of ``shape`` that a Reshape makes of one; what is cut away along each leaves a grid."""
        if len(shape) == 1:
            return [labels]
        rows, columns = shape[0], math.prod(shape[1:])
        if rows == 1:
            return [never(1), *self.grid(labels, shape[1:])]
        if columns == 1:
            return [labels, *(never(1) for _ in shape[1:])]
        m = self.find(labels)
        if (self._frozen[m] > 0).all():
            return [never(n) for n in shape]
        period = _period(m)
        if period < len(m) and period % columns == 0:  # the same for each picture of a batch
            first = self.grid(labels[:period], (period // columns, *shape[1:]))
            return [np.tile(first[0], len(m) // period), *first[1:]]
        leaves = self._leaves(labels).reshape(-1, rows, columns)
        by_row, by_column = _common(leaves), _common(leaves.swapaxes(1, 2))
        covered = (leaves[:, None] == by_row[:, :, None]) | (leaves[:, None] == by_column[:, None])
        if (covered.any(1) | (leaves == NEVER)).all():
            return [self._any(by_row, rows), *self.grid(self._any(by_column, columns), shape[1:])]
        along, across = self.fresh(rows), self.fresh(columns)
        self.unify(m, self.either(np.repeat(along, columns), np.tile(across, rows)))
        return [along, *self.grid(across, shape[1:])]

    def _any(self, layers: Labels, count: int) -> Labels:
        """Return an axis that goes where any of several goes."""
        made = never(count)
        for labels in layers:
            made = self.either(made, labels)
        return made


def _period(labels: Labels) -> int:
    """Return after how many places an axis begins again."""
    again = np.flatnonzero(labels == labels[0])
    for period in again[1:2].tolist():
        if len(labels) % period == 0 and (labels.reshape(-1, period) == labels[:period]).all():
            return int(period)
    return len(labels)


def _common(leaves: Labels) -> Labels:
    """Return what all places of a row go with, (depth, rows), of (depth, rows, columns)."""
    first = leaves[:, :, 0]
    shared = (leaves[None] == first[:, None, :, None]).any(1).all(-1)
    common: Labels = np.where(shared, first, NEVER)
    return common


def _distinct(labels: Labels) -> bool:
    return bool((np.diff(labels) > 0).all()) or len(np.unique(labels)) == len(labels)


def never(count: int) -> Labels:
    """Return an axis of which nothing is cut away."""
    return np.zeros(count, np.int64)
