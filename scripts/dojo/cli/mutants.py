"""The part of `kata verify` that judges mutants; apart, since it needs cosmic-ray."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TextIO

import click

from dojo.cli.progress import Progress
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import Pool, runner_pool
from dojo.verification.mutation.campaign import MutationRun
from dojo.verification.mutation.judging import LIMITS, Judged
from dojo.verification.mutation.score import HEADER, Score, as_json, total_row
from dojo.wording.tables import render


def verify_mutants(
    project: Project,
    katas: Sequence[Kata],
    sample_size: int | None,
    record: bool,
    json_file: TextIO | None,
    cluster: str | None,
) -> bool:
    """Judge mutants of the katas' references, and show the scores; say whether none survives."""
    run = MutationRun(project, katas, sample_size)
    progress = Progress()
    try:
        with _pool(project, cluster) as pool:
            _judge(run, pool, progress)
            if record:
                _record(run, pool, progress)
    except KeyboardInterrupt:
        how = "goes on from here" if sample_size is None else "starts anew"
        progress.say(f"Stopped; the same command {how}.")
        raise SystemExit(130) from None
    progress.show("")
    scores = list(run.scores.values())
    if json_file:
        json_file.write(json.dumps(as_json(scores), indent=1) + "\n")
    _show(scores, err=json_file is not None)
    return not any(score.survivors() or score.problems for score in scores)


def _pool(project: Project, cluster: str | None) -> AbstractContextManager[Pool]:
    if cluster is None:
        return runner_pool(project, LIMITS)
    from dojo.runner.cluster import cluster_pool  # not above: Dask is an extra

    return cluster_pool(project, cluster, LIMITS)


def _judge(run: MutationRun, pool: Pool, progress: Progress) -> None:
    for score in run.judge(pool):
        name, done, left = score.kata.name, len(score.judged), len(score.survivors())
        if done == score.total:
            progress.say(f"{name}: {done} mutants judged, {left} survived")
        else:
            progress.show(f"{name}: {done} of {score.total} mutants judged, {left} survived")


def _record(run: MutationRun, pool: Pool, progress: Progress) -> None:
    for kata in run.record(pool):
        progress.show(f"{kata.name}: choosing fresh bugs")


def _show(scores: list[Score], *, err: bool) -> None:
    rows = [score.row() for score in scores]
    if len(rows) > 1:
        rows.append(total_row(scores))
    click.echo(render(HEADER, rows), err=err)
    for score in scores:
        for problem in score.problems:
            click.secho(f"{score.kata.name}: {problem}", fg="red", err=err)
        for one in score.survivors():
            click.echo(_survivor(one), err=err)


def _survivor(one: Judged) -> str:
    mutant = one.mutant
    lines = [f"\n{one.kata.name}, reference.py line {mutant.line}: {mutant.operator} survives"]
    lines += [f"- {line}" for line in mutant.before.splitlines()]
    lines += [f"+ {line}" for line in mutant.after.splitlines()]
    return "\n".join(lines)
