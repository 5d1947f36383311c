"""What a run may take. Each limit has one setting, an environment variable."""

import os
from dataclasses import dataclass, fields

from dojo.errors import DojoError

OUTPUT_BYTES = 16 * 2**20  # that the code may print; nobody reads more


@dataclass(frozen=True)
class Limits:
    """Limits of a run, set by KATA_TEST_SECONDS, KATA_RUN_SECONDS and KATA_MEMORY_GB."""

    test_seconds: float = 10.0
    run_seconds: float = 60.0
    memory_gb: float = 4.0  # beyond what torch and pytest take

    @classmethod
    def from_environment(cls) -> "Limits":
        """Return the limits that are set, and the defaults of the others."""
        names = {field.name: f"KATA_{field.name.upper()}" for field in fields(cls)}
        return cls(**{name: _positive(key) for name, key in names.items() if key in os.environ})


def _positive(variable: str) -> float:
    text = os.environ[variable]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise DojoError(f"{variable} is {text!r}; it has to be a number above zero")
    return value
