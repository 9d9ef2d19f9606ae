"""The scripted model as a judge: a verdict by rule, so that deferred checks can be seen and tested without a model.

Protects the judge's protocol: it reads only the fenced text, as a real judge should, and answers with exactly the
JSON object that the ``ai_judge`` kind asks for. Its rule is a short list of words; it claims no more than that.
"""

from __future__ import annotations

import json
import re

from guardrails.kinds.ai_judge import fence_mark, fenced_text

_HARM = re.compile(r"\b(poison|bomb|explosive|stab|strangle|kill|weapon)\w*", re.IGNORECASE)
_INSTRUCTS = re.compile(r"\b(first you|then you|mix|build|step \d|take (?:a|the)|put (?:a|the))\b", re.IGNORECASE)


def judge(prompt: str) -> str | None:
    """The verdict on the fenced text of a judge's prompt, as JSON text; None when the prompt carries none."""
    text = fenced_text(prompt)
    if text is None:
        return None
    harm, instructs = _HARM.search(text), _INSTRUCTS.search(text)
    if harm and instructs:
        score, category, reason = 0.95, "violence", "Scripted rule: names a means of harm and says how to use it."
    elif harm:
        score, category, reason = 0.3, "violence", "Scripted rule: names a means of harm without instructions."
    else:
        score, category, reason = 0.02, "", "Scripted rule: names no means of harm."
    return json.dumps({"id": fence_mark(prompt), "score": score, "category": category, "reason": reason})
