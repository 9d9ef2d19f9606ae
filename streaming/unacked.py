"""What a socket has sent and its client has not acknowledged: three numbers for each event.

Exists because every open stream keeps such a list, and a client says that it has read only every 64 KB: a tuple with
three objects for each event would weigh more than the text that it stands for.
"""

from __future__ import annotations

from array import array


class Unacked:
    """Events in the order in which they were sent. ``bytes``: how many of them are on their way, as far as we know."""

    __slots__ = ("_sent", "_seqs", "_sessions", "bytes")

    def __init__(self) -> None:
        self._sessions: list[str] = []
        self._seqs = array("Q")
        """A seq may count a session's age in milliseconds (``deferred.tell``)."""
        self._sent = array("I")
        """Which of the sessions, and the event's bytes; and the next event."""
        self.bytes = 0

    def sent(self, session_id: str, seq: int, size: int) -> None:
        """One event of ``size`` bytes is on its way."""
        if session_id not in self._sessions:
            self._sessions.append(session_id)
        self._seqs.append(seq)
        self._sent.extend((self._sessions.index(session_id), size))
        self.bytes += size

    def acknowledge(self, session_id: str, seq: int) -> None:
        """Everything that was sent up to this event is off the books; nothing is when it was never sent."""
        if session_id not in self._sessions:
            return
        session, seqs, sent = self._sessions.index(session_id), self._seqs, self._sent
        read = max((n for n, one in enumerate(seqs, 1) if one <= seq and sent[2 * n - 2] == session), default=0)
        self.bytes -= sum(sent[1 : 2 * read : 2])
        del seqs[:read], sent[: 2 * read]
        if not sent:
            self._sessions.clear()
