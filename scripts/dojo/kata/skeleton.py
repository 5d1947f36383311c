"""Writes the skeleton of a new kata: small, working, and full of TODOs for `verify` to name."""

import re
from pathlib import Path

from dojo.errors import DojoError
from dojo.kata import catalogue, kata_toml, system_skeleton
from dojo.kata.bug import Kind
from dojo.project import Project

_README = """\
# {number} {title}

*layers, easy, 10 minutes*

TODO: one sentence on what the code is for.

| function | returns |
|---|---|
| `scale(x, factor)` | TODO: shapes, dtypes, errors |

- TODO: what is promised for which inputs, and what may not be called.

    pytest katas/{name}
"""

_REFERENCE = '''\
"""TODO: one line on what this module computes."""

from torch import Tensor


def scale(x: Tensor, factor: float) -> Tensor:
    """Return `x` times `factor`; same shape and dtype."""
    return x * factor
'''

_TOML = """\
title = "{title}"
topic = "layers" # TODO: what it is about; an unknown one names those that there are
level = "easy" # easy plants 1 bug, medium 2, hard 3 or more; README.md says all three too
minutes = 10
default = ["adds-factor"]

[[bug]]
id = "adds-factor"
title = "Adds the factor"
kind = "formula" # one of {kinds}
find = "x * factor" # stands exactly once in reference.py
replace = "x + factor"
killed_by = ["test_scale_multiplies"]
hints = [
    "TODO: a question about the behaviour.",
    "TODO: where it shows.",
    "TODO: where to look, never the fix.",
]
why = "TODO: what goes wrong, how it shows, how to catch it in code of one's own."
# seen_in = ["a public thread where this kind of bug shipped"]
"""

_TESTS = """\
import torch

from dojo.testing import assert_matches, unchanged


def test_scale_multiplies(impl):
    x = torch.randn(3, 5)
    with unchanged(x=x):
        actual = impl.scale(x, 2.5)
    assert_matches(actual, torch.mul(x, 2.5), "x times 2.5")
"""


_TEXTS = _README, _REFERENCE, _TOML, _TESTS
_TEXTS_OF_A_SYSTEM = (
    system_skeleton.README,
    system_skeleton.REFERENCE,
    system_skeleton.TOML,
    system_skeleton.TESTS,
)


def create(project: Project, name: str, *, system: bool = False) -> Path:
    """Make the folder of a kata called `NN_topic`, or `topic` to get the next free number."""
    folders = catalogue.kata_folders(project)
    if re.fullmatch(r"[a-z][a-z0-9_]*", name):
        numbers = [int(f.name[:2]) for f in folders if catalogue.NAME.fullmatch(f.name)]
        name = f"{max(numbers, default=0) + 1:02}_{name}"
    if not catalogue.NAME.fullmatch(name):
        raise DojoError(f"{name!r} is no name for a kata: write alibi or 60_alibi, in lower case")
    folder = project.katas / name
    if folder.exists():
        raise DojoError(f"{folder} exists already")
    if other := catalogue.taken_by(name, folders):
        raise DojoError(f"{other.name} has that number or that word already: choose another")
    number, _, topic = name.partition("_")
    values = {
        "name": name,
        "number": number,
        "title": topic.replace("_", " ").capitalize(),
        "kinds": ", ".join(Kind),
    }
    folder.mkdir(parents=True)
    readme, reference, toml, tests = _TEXTS_OF_A_SYSTEM if system else _TEXTS
    files = {
        "README.md": readme.format(**values),
        "reference.py": reference,
        "kata.toml": toml.format(**values),
        f"test_{topic}.py": tests,
    }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    kata = kata_toml.load(folder)
    kata.botched.write_text(kata.planted_source(kata.default), encoding="utf-8")
    return folder
