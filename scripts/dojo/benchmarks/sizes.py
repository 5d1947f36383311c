"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How often or how long each thing is measured; the defaults take some minutes together."""

    saves: int = 11
    keys: int = 11
    cosmic_ray_seconds: float = 40.0
    soak_runs: int = 1_000
