"""Why a call about a stream is refused.

Exists apart from the calls because what reads the stores refuses as well. Protects the rule that a refused call changes
nothing: each of these is raised before anything is applied.

    NoSuchStream   not there, or another key's
    OutOfTurn      gap, other body, lost race, after the end; ``expected_seq`` is what to send
    StateLost      no store has the state any more; the session has been ended
    StateForeign   another version of this program wrote the state, or another key sealed it; nothing has been ended
    TooLong        the whole text is over the limit
"""

from __future__ import annotations

from streaming.guarded.record import Record


class NoSuchStream(Exception):
    """There is no such stream for this client."""


class OutOfTurn(Exception):
    """Nothing was applied; ``expected_seq`` is the seq of the next delta."""

    def __init__(self, code: str, message: str, expected_seq: int) -> None:
        super().__init__(message)
        self.code = code
        self.expected_seq = expected_seq


class StateLost(Exception):
    """The state is gone for good."""


class StateForeign(Exception):
    """The state is not for this process: another one can go on with it, or this one when it is what it was."""


class TooLong(Exception):
    """The text of the stream would become longer than a text may be."""


def in_turn(record: Record, seq: int | None) -> None:
    """Raise ``OutOfTurn`` unless ``seq`` comes next; None is a finish that does not say it."""
    if record.ended:
        raise OutOfTurn("stream_ended", f"The stream is over ({record.ended}).", record.expected_seq)
    if seq is None and record.behind:
        said = "The newest state of the stream was lost: say the seq, so that nothing is left out unseen."
        raise OutOfTurn("seq_conflict", said, record.expected_seq)
    if seq is not None and seq != record.expected_seq:
        said = f"seq {record.expected_seq} comes next; nothing was applied."
        if record.began_with(seq):
            said = f"seq {seq} came with the start; nothing was applied now."
        elif (known := record.applied(seq)) is not None:
            said = f"seq {seq} was sent before with another body; nothing was applied."
            if not known:
                said = f"seq {seq} was applied long ago, and its answer is not kept; nothing was applied now."
        raise OutOfTurn("seq_conflict", said, record.expected_seq)
