"""Sees that a planted bug looks like its neighbours: no linter, formatter or editor points at it.

What the reference itself is told counts as usual; ruff is asked where it is installed.
"""

import io
import json
import subprocess
import sysconfig
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from dojo.errors import DojoError
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.verification.greyed import greyed_out

_REFERENCE = "the_reference"  # no bug can have this id

Remarks = dict[str, Counter[str]]  # of each text, by its name


# Not `python -m ruff`: Python's start would take longer than ruff's work.
_RUFF = Path(sysconfig.get_path("scripts")) / "ruff"


def has_ruff() -> bool:
    """Say whether ruff is here; a learner's environment does without."""
    return _RUFF.is_file()


def problems(project: Project, kata: Kata) -> Iterator[str]:
    """Yield, in words, each bug that stands out once it is planted, and by what."""
    texts = {bug.id: kata.planted_source([bug.id]) for bug in kata.bugs}
    texts[_REFERENCE] = kata.correct_source
    remarks = {name: Counter(greyed_out(text)) + _comments(text) for name, text in texts.items()}
    if has_ruff():
        for name, more in _ruff(project, texts).items():
            remarks[name] += more
    usual = remarks.pop(_REFERENCE)
    for bug_id, said in remarks.items():
        if new := said - usual:
            yield f"bug {bug_id} stands out: {'; '.join(sorted(new))}"


def _comments(text: str) -> Counter[str]:
    """Return the comments: one that comes with a bug marks the spot."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return Counter(
        f"it has the comment {token.string!r}" for token in tokens if token.type == tokenize.COMMENT
    )


def _ruff(project: Project, texts: Mapping[str, str]) -> Remarks:
    """Return what ruff, set up as for the project, says of texts; all in two processes."""
    with tempfile.TemporaryDirectory(prefix="kata-lint-") as scratch:
        files = {name: Path(scratch) / f"{name}.py" for name in texts}
        for name, file in files.items():
            file.write_text(texts[name], encoding="utf-8")
        remarks: Remarks = {name: Counter() for name in texts}
        for finding in json.loads(
            _run_ruff(project, "check", scratch, "--exit-zero", "--output-format=json")
        ):
            remark = f"ruff says {finding['code']}: {finding['message']}"
            remarks[Path(finding["filename"]).stem][remark] += 1
        _run_ruff(project, "format", scratch)
        for name, file in files.items():
            if file.read_text(encoding="utf-8") != texts[name]:
                remarks[name]["ruff format changes the text"] += 1
    return remarks


def _run_ruff(project: Project, command: str, folder: str, *options: str) -> str:
    done = subprocess.run(
        [
            *(_RUFF, command, folder),
            # Of the folder it runs in: in a whole path it takes a dollar sign for a variable.
            *("--no-cache", "--quiet", "--config=pyproject.toml", *options),
        ],
        cwd=project.root,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise DojoError(f"ruff {command} failed: {done.stderr.strip()}")
    return done.stdout
