"""The cheapest way to say yes or no to many things at once: a minimum cut."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

NO, YES = "no", "yes"
NEVER = 1 << 60
"""A price that is never worth paying."""


class Cut:
    """Things to say yes or no to, and what it costs when two of them are answered differently.

    Own code because the graphs are small, and importing networkx takes longer than most models need.
    """

    def __init__(self) -> None:
        self.room: dict[Hashable, dict[Hashable, int]] = defaultdict(lambda: defaultdict(int))

    def cost(self, no: Hashable, yes: Hashable, price: int) -> None:
        """Add a price to pay where ``no`` is answered no and ``yes`` is answered yes; NO and YES are answered."""
        self.room[no][yes] += price
        self.room[yes][no] += 0

    def answers(self) -> set[Hashable]:
        """Return what is answered yes in the cheapest case: as little as possible.

        Augments shortest paths (Edmonds, Karp 1972) until none is left.
        """
        while (path := self._path()) is not None:
            least = min(self.room[a][b] for a, b in path)
            for a, b in path:
                self.room[a][b] -= least
                self.room[b][a] += least
        return self._reaching_yes()

    def _path(self) -> list[tuple[Hashable, Hashable]] | None:
        came: dict[Hashable, Hashable] = {NO: NO}
        queue: deque[Hashable] = deque([NO])
        while queue:
            a = queue.popleft()
            for b, room in self.room[a].items():
                if room > 0 and b not in came:
                    came[b] = a
                    if b == YES:
                        path: list[tuple[Hashable, Hashable]] = [(a, b)]
                        while path[-1][0] != NO:
                            path.append((came[path[-1][0]], path[-1][0]))
                        return path
                    queue.append(b)
        return None

    def _reaching_yes(self) -> set[Hashable]:
        found: set[Hashable] = {YES}
        queue: deque[Hashable] = deque([YES])
        while queue:
            b = queue.popleft()
            for a in self.room[b]:
                if a not in found and self.room[a][b] > 0:
                    found.add(a)
                    queue.append(a)
        return found - {YES}
