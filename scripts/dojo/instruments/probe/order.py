"""What is asked of the process that probes. Needs no torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """What to probe, and what that may take."""

    root: str  # of the project
    folder: str  # of the kata
    path: str  # of the implementation
    seed: int
    steps: int | None  # of `run()`; none for as many as it has, and a few seconds allow
    test_seconds: float
    run_seconds: float
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the order as plain data."""
        return asdict(self)
