"""Names of fields that have been looked at.

Exists because the chunks of a stream are much alike: most need not be copied to look at their names once more. Protects
the rule that no name is passed on unseen: what is not known for certain to stay as it is, is not covered. Pure.
"""

from __future__ import annotations

MOST = 1_000
"""Names that are remembered; an upstream that invents more of them costs its own answer time."""


class Known:
    """``deepest``: an object nested so deep is never covered, because it is cut off there."""

    def __init__(self, deepest: int, highest_index: int) -> None:
        self._deepest, self._highest_index = deepest, highest_index
        self._names: set[str] = set()

    def learn(self, name: str, shown: str) -> str:
        """``shown``, which is what became of the name."""
        if shown == name and len(self._names) < MOST:
            self._names.add(name)
        return shown

    def covers(self, value: object, depth: int = 0) -> bool:
        """Whether every name in it is known to stay, and every number that says which of a row something is, is one."""
        if depth >= self._deepest:
            return False
        if isinstance(value, dict):
            if not self._names.issuperset(value):
                return False
            number = value.get("index", 0)
            if type(number) is not int or not 0 <= number < self._highest_index:
                return False
            value = value.values()
        elif not isinstance(value, list):
            return True
        return all(self.covers(part, depth + 1) for part in value if isinstance(part, dict | list))
