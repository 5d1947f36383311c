"""Records what healthy runs of a system look like, from its reference."""

from dojo.errors import DojoError
from dojo.files import revision, write_atomically
from dojo.instruments.bands import Band
from dojo.kata.kata import Kata
from dojo.runner.log import RunLog
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Reference

SEEDS = 10


def record(kata: Kata, pool: Pool) -> Band:
    """Run the reference over ten seeds, write `healthy.json`, and return what is in it."""

    def run(runner: Runner, seed: int) -> RunLog:
        return runner.log(kata, Reference(), seed)

    logs = []
    for seed, log in enumerate(pool.map(run, range(SEEDS))):
        if log.failure:
            raise DojoError(f"{kata.name}: the reference, seed {seed}: {log.failure}")
        logs.append(log.steps)
    band = Band.of(logs, revision(kata.reference.read_bytes()))
    write_atomically(kata.healthy_file, band.as_json().encode())
    return band
