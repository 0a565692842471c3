"""What every result file says first: the machine, the versions, the settings, the time."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import machine
from .peers import Settings


def heading(settings: Settings, **more: Any) -> dict[str, Any]:
    """Return a document that says what was measured on what; ``more`` settings are added."""
    return {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {"threads": settings.threads, "seconds": settings.seconds} | more,
    }


def write(document: dict[str, Any], path: Path) -> None:
    """Write a document as JSON, its folder too where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
