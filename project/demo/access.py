"""How a visitor gets in: address, login and API key, in ``demo.json`` (mode 0600) and on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = "demo.json"


@dataclass(frozen=True, slots=True)
class Access:
    """The content of ``demo.json``."""

    url: str
    admin_user: str
    admin_password: str
    api_key: str

    def store(self, data_dir: Path) -> None:
        """Write the file, whole or not at all."""
        draft = data_dir / f".{FILE}-{os.getpid()}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
            file.write("\n")
        os.replace(draft, data_dir / FILE)

    def lines(self) -> Iterator[str]:
        """What the terminal shows when everything is up."""
        yield ""
        yield f"Sluicegate is at   {self.url}"
        yield f"what there is      {self.url}/welcome/"
        yield f"admin              {self.url}/admin/   {self.admin_user}   {self.admin_password}"
        yield f"API key            {self.api_key}"
        yield "Ctrl-C ends everything."
        yield ""


def stored(data_dir: Path) -> Access | None:
    """What an earlier run wrote; None when there is no such file or it is not readable as one."""
    try:
        content = json.loads((data_dir / FILE).read_text())
        return Access(**{field.name: str(content[field.name]) for field in fields(Access)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
