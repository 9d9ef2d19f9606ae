"""What a socket has sent and its client has not acknowledged: three numbers for each event.

Exists because every open stream keeps such a list, and a client says that it has read only every 64 KB: a tuple with
three objects for each event would weigh more than the text that it stands for.
"""

from __future__ import annotations

from array import array


class Unacked:
    """Events in the order in which they were sent. ``bytes``: how many of them are on their way, as far as we know."""

    __slots__ = ("_sent", "_sessions", "bytes")

    def __init__(self) -> None:
        self._sessions: list[str] = []
        self._sent = array("I")
        """Which of the sessions, the event's seq, its bytes; and the next event."""
        self.bytes = 0

    def sent(self, session_id: str, seq: int, size: int) -> None:
        """One event of ``size`` bytes is on its way."""
        if session_id not in self._sessions:
            self._sessions.append(session_id)
        self._sent.extend((self._sessions.index(session_id), seq, size))
        self.bytes += size

    def acknowledge(self, session_id: str, seq: int) -> None:
        """Everything that was sent up to this event is off the books; nothing is when it was never sent."""
        if session_id not in self._sessions:
            return
        session, sent = self._sessions.index(session_id), self._sent
        last = max((at for at in range(0, len(sent), 3) if sent[at] == session and sent[at + 1] <= seq), default=-3)
        self.bytes -= sum(sent[2 : last + 3 : 3])
        del sent[: last + 3]
        if not sent:
            self._sessions.clear()
