"""One channel of an answer: its gate, what that has released, and where values come back in it.

Exists because a reader sees an answer's blocks and parts as one text, so that an address or a tag may stand across two
of them. Protects two rules. A channel is one text to its gate from its first piece to its last, whatever comes between
them. And a value comes back into it only where neither what it said before nor what a reader has seen since forbids it;
where that is not known, the text waits for the end of what stands before it, and keeps its placeholders where that
comes only with the end of the answer. Pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from streaming.core.gate import Gate
from streaming.core.restore import Restorer
from streaming.core.text import Mender

MOST_PASSED = 64
"""Channels in a row of which nothing was shown and behind which another one's place is looked for, at each piece."""


@dataclass(slots=True, eq=False)
class Channel:
    """One channel: its gate, and what it has released that is not sent yet.

    Of texts that are kept, ``visible`` is what the client is sent, ``recorded`` the same before values were put back.
    """

    gate: Gate
    restorer: Restorer | None = None
    mender: Mender = field(default_factory=Mender)
    parts: list[str] = field(default_factory=list)
    visible: list[str] | None = None
    recorded: list[str] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    """Which of what is recorded stands for something that was hidden."""
    raw: list[str] | None = None
    heard: list[str] | None = None
    """What came, for workers who judge texts of this kind when the answer is over."""
    ended: bool = False
    entire: bool = False
    """It is a name or the like, which is sent in one piece or not yet."""
    over: bool = False
    """All of it has been shown."""
    open_ended: bool = False
    """Its dialect says where it ends only when the answer does: what comes behind it need not wait for that."""
    former: Channel | None = None
    """Whose text a reader sees right before this one's: where that stands, this one begins. None: it has begun."""
    followers: dict[Channel, None] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    """What was released before it was known where this one begins."""
    depth: int = 0
    """How many there were in a row before it, when it came, that had said nothing."""
    shut: bool = False
    """No value comes back any more."""
    all_came: bool = False

    @property
    def has_text(self) -> bool:
        """Something was released that may be sent and is not sent yet."""
        return bool(self.parts) and not self._in_pieces

    @property
    def _in_pieces(self) -> bool:
        return self.entire and not self.gate.blocked and (self.gate.held > 0 or self.gate.waiting)

    @property
    def shown_as_it_came(self) -> bool:
        """Whether all that came of a kept channel has been sent, with nothing hidden."""
        return not self.parts and "".join(self.visible or ()) == "".join(self.raw or ())

    @property
    def waiting(self) -> bool:
        """Its text has ended and a guardrail that decides still has to answer, about it or what stands before it."""
        return self.ended and (self.gate.waiting or (self.all_came and not self.over and not self.gate.blocked))

    def take(self) -> str:
        """What was released since the last time."""
        if self._in_pieces:
            return ""
        text = "".join(self.parts)
        self.parts.clear()
        return text

    def shown(self, text: str) -> None:
        """The gate has released this."""
        if self.visible is not None:
            self.recorded.append(text)
        if self.restorer is not None:
            if self._too_early(self.restorer):
                self.pending.append(text)
                return
            text = text if self.shut else self.restorer.feed(text)
        self._show(text)

    def shown_all(self) -> None:
        """Nothing follows any more."""
        if self._shown_all():
            self.wake()

    def _shown_all(self) -> bool:
        if self.over or self.gate.blocked:
            return False
        self.all_came = True
        if self.restorer is not None:
            if (former := self._before_this) is not None and not former.ended:
                self._shut()  # the end of that one may come only when this one's has been told
            if self._too_early(self.restorer):
                return False
            if not self.shut:
                self._show(self.restorer.finish())
        self.over = True
        return True

    def wake(self) -> None:
        """More of this one has come, or all of it: it may be clear now where the next one begins."""
        awake = deque([self])
        while awake:
            awake.extend(follower for follower in awake.popleft().followers if follower._goes_on())

    def begins_behind(self, last: Channel) -> None:
        """This one is new, and ``last`` stands right before it."""
        self.depth = last.depth + 1 if last.former is not None and last._silent else 0
        if self.depth > MOST_PASSED:
            self._shut()
            return
        self.former = last
        last.followers[self] = None

    def goes_on_behind(self, last: Channel) -> None:
        """More of this one comes, and text of ``last`` has come since it was told of before."""
        if self.ended or self.shut:
            return
        passed = 0
        while last.former is not None and last is not self:  # nothing of it has been shown
            last = last.former
            if (passed := passed + 1) > MOST_PASSED:
                self._shut()
                return
        if last is self:
            return
        begun = self.former is None
        if not (self._stands_behind(last, again=True) if begun else self._before_this is last):
            self._shut()

    @property
    def _silent(self) -> bool:
        return not (self.ended or self.gate.held or self.gate.settled)

    @property
    def _before_this(self) -> Channel | None:
        """The channel right before this one that has said something or ended."""
        former = self.former
        while former is not None and former.former is not None and former._silent:
            former = former.former
        return former

    def _too_early(self, restorer: Restorer) -> bool:
        former = self._before_this
        if former is None:
            return False
        if former.shut:
            self._shut()
            return False
        if former.over:
            if former.restorer is not None:
                restorer.follow(former.restorer)
        elif former.ended or former.former is not None or not former.open_ended:
            former.followers[self] = None
            return True
        elif not self._stands_behind(former):
            self._shut()  # where it begins is known when all of the answer is there, and it waits for no such thing
            return False
        self.former = None
        return False

    def _stands_behind(self, former: Channel, *, again: bool = False) -> bool:
        if self.restorer is None:
            return True
        before = None if former.shut else former.restorer
        return self.restorer.stand_behind(before, former.gate.held_text, again=again)

    def _goes_on(self) -> bool:
        """Whether it has begun now, or come to its end."""
        began = False
        if self.restorer is not None and self.pending and not self._too_early(self.restorer):
            pending, self.pending = "".join(self.pending), []
            self._show(pending if self.shut else self.restorer.feed(pending))
            began = True
        return (self.all_came and self._shown_all()) or began

    def _shut(self) -> None:
        self.shut, self.former = True, None
        pending, self.pending = "".join(self.pending), []
        self._show((self.restorer.given_up() if self.restorer is not None else "") + pending)

    def _show(self, text: str) -> None:
        if text:
            self.parts.append(text)
            if self.visible is not None:
                self.visible.append(text)
