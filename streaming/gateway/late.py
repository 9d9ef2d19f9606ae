"""What workers are asked for the shadow of a request, when the client has its answer.

Exists apart from the reading of the texts because it is the record's matter. Protects two rules: a shadow's guardrail
is asked about the texts that the active version's would be asked about, up to where the answer was stopped; and what
the active version masks is told to no guardrail over the network, whichever version asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from guardrails.findings import AppliesTo
from guardrails.kinds.base import Turn
from guardrails.policy import Guardrail
from streaming.beside import Beside
from streaming.gateway.channel import Channel
from streaming.gateway.gates import Gates
from streaming.gateway.prompt import Prompted
from streaming.gateway.shadow import Noted
from streaming.sessions import DeferredText
from streaming.shadow.asked import Late

Turns = Callable[[Guardrail, AppliesTo], tuple[Turn, ...] | None]


async def wholes(
    late: Late,
    gates: Gates,
    prompted: Prompted,
    noted: Noted,
    asked: tuple[DeferredText, ...],
    choices: Iterable[int],
    turns: Turns,
) -> None:
    """Put together what the shadow's DEFERRED guardrails are asked. ``asked``: what workers are asked already."""
    policy = late.policy
    if prompted.masking is not None:
        texts = ((AppliesTo.PROMPT, prompted.raw), *prompted.beside)
        outside = {kind for kind, _ in texts if any(map(late.tells, policy.deferred(kind)))}
        await prompted.masking.learn([(text, kind) for kind, text in texts if text and kind in outside])

    def told(guardrail: Guardrail, text: str, applies_to: AppliesTo) -> str:
        if guardrail.impl.performance.network and not late.tells(guardrail):
            return ""  # which nobody is asked about
        return prompted.told_beside(guardrail, text, applies_to)

    def add(applies_to: AppliesTo, text: str, part: int = 0, released: int = 0) -> None:
        about = [
            # The upstream's words as they came; what the user typed without values that are masked.
            DeferredText(guardrail.name, applies_to.value,
                         text if applies_to is AppliesTo.RESPONSE else told(guardrail, text, applies_to), part=part,
                         turns=turns(guardrail, applies_to))
            for guardrail in (policy.deferred(applies_to) if text else ())
        ]  # fmt: skip
        late.wholes(about, gates.policy, asked, released)

    add(AppliesTo.PROMPT, prompted.raw)
    for choice in choices:
        channels = gates.answers[choice]
        said, released = "".join(map(_came, channels)), sum(one.gate.counters.released for one in channels)
        add(AppliesTo.RESPONSE, said, choice, released)
    given = Beside(policy, monitor=True, told=told)
    for applies_to, text in prompted.beside:
        given.add(applies_to, text, 0)
    heard = Beside(policy, monitor=True)
    for one in noted:
        if one.gate is not None and one.applies_to is not AppliesTo.RESPONSE:
            heard.add(one.applies_to, *one.seen())
    for kind, found in ((AppliesTo.PROMPT, given), (AppliesTo.RESPONSE, heard)):
        about = [replace(item, turns=turns(policy.guardrail(item.guardrail), kind)) for item in found.deferred()]
        late.wholes(about, gates.policy, asked, 0)


def _came(channel: Channel) -> str:
    """What came of a channel up to the end of what stopped it."""
    text = "".join(channel.raw or ())
    return text if channel.gate.block is None else text[: channel.gate.block.end]
