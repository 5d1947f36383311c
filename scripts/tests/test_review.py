"""Reviews: what requests are made of, how they are judged, and what is kept of it."""

import ast
import asyncio
import json
import os
import random
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from itertools import islice
from statistics import NormalDist

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import DojoError
from dojo.history.export import export_history, import_history
from dojo.history.history import History
from dojo.history.reviews import Effect, Reviewed, ReviewedRequest
from dojo.history.scoring import Score, score
from dojo.kata import catalogue, kata_toml
from dojo.kata.bug import Kind
from dojo.kata.kata import Topic
from dojo.practice import scheduler, session
from dojo.practice.planning import Planned
from dojo.practice.review import renaming, rewriting, spelling
from dojo.practice.review import supply as supplying
from dojo.practice.review.desk import Desk
from dojo.practice.review.drawing import REFACTORINGS, Material, draw_request
from dojo.practice.review.edits import Edit, apart, difference, edited
from dojo.practice.review.pull_request import edited_alone
from dojo.practice.review.refactorings import Parsed
from dojo.practice.review.supply import kinds_by_need, supply, under_way
from dojo.project import Project
from dojo.runner.pool import runner_pool
from dojo.tui.marked_diff import MarkedDiff
from dojo.tui.review import ReviewApp
from dojo.verification.reviews import Claim, claims
from dojo.wording.review_page import render_requests
from dojo.wording.reviews import mark, summary_lines, verdict_line

REAL = Project.here()


_materials = cache(supplying._material)


@pytest.fixture(autouse=True, scope="module")
def read_once():
    """Read each kata of the checkout once: to read them takes most of the time."""
    read = supplying._material
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            supplying,
            "_material",
            lambda folder: (_materials if folder.is_relative_to(REAL.katas) else read)(folder),
        )
        yield


def requests(seed=0, count=40, **wishes):
    return list(islice(supply(REAL, seed=seed, **wishes), count))


@pytest.fixture(scope="module")
def many():
    return requests(count=100)


@pytest.fixture
def material(kata):
    return Material(kata)


def first_of_change(request, number):
    return next(i for i, line in enumerate(request.lines) if line.change == number)


# What a request is made of


def test_each_change_is_of_the_reference_and_of_its_bug(many):
    for request in many:
        for change in request.changes:
            alone = edited_alone(request.kata, change)
            if change.bug:
                assert alone == request.kata.planted_source((change.bug.id,))
            else:
                assert change.effect is Effect.HARMLESS
                assert change.reason
            assert change.old_is_edited or change.effect is not Effect.MENDS
            assert not change.old_is_edited or change.effect is not Effect.BREAKS


def test_what_is_in_no_change_is_the_reference(many):
    for request in many:
        undone = request.new
        source = request.kata.correct_source.split("\n")
        mine = [one.edit for one in request.changes if not one.old_is_edited]
        assert undone == "\n".join(edited(source, mine))
        for line in request.lines:
            if line.sign == " ":
                assert line.text in source


def test_the_diff_leads_from_the_old_text_to_the_new_one(many):
    for request in many:
        old, new = request.old.split("\n"), request.new.split("\n")
        at = 0
        made = []
        for line in request.lines:
            gap = line.new - 1 - len(made) if line.new else line.old - 1 - at
            made += old[at : at + gap]
            at += gap
            if line.old is not None:
                assert old[line.old - 1] == line.text
                at = line.old
            if line.new is not None:
                assert new[line.new - 1] == line.text
                made.append(line.text)
        assert [*made, *old[at:]] == new


def test_both_sides_are_valid_python_and_differ(many):
    for request in many:
        ast.parse(request.old)
        ast.parse(request.new)
        assert request.old != request.new


def test_half_of_the_requests_are_wrong_and_their_size_tells_nothing(many):
    more = [*many, *requests(1, 200)]
    wrong = [request for request in more if request.is_wrong]
    assert 0.42 < len(wrong) / len(more) < 0.58
    sizes = [
        sum(len(one.changes) for one in some) / len(some)
        for some in (wrong, [one for one in more if not one.is_wrong])
    ]
    assert abs(sizes[0] - sizes[1]) < 0.3
    assert {len(request.changes) for request in more} == {1, 2, 3, 4}


def test_bugs_come_in_and_are_mended_and_fresh_ones_are_among_them(many):
    effects = {change.effect for request in many for change in request.changes}
    assert effects == set(Effect)
    ids = [change.bug.id for request in many for change in request.changes if change.bug]
    assert any(bug.startswith("fresh-") for bug in ids)
    assert not all(bug.startswith("fresh-") for bug in ids)


def test_an_equivalent_never_shares_a_function_with_a_bug(many):
    seen = 0
    for request in many:
        proved = {one.reason: one for one in Material(request.kata).equivalents}
        outline = Parsed.of(request.kata.correct_source).outline
        for change in request.changes:
            if change.reason in proved:
                seen += 1
                mine = outline.outermost(change.edit.start)
                bugs = [one for one in request.changes if one.bug]
                assert mine not in [outline.outermost(one.edit.start) for one in bugs]
    assert seen


def test_the_author_says_how_many_lines_change_and_not_how(many):
    for request in many:
        minus = sum(line.sign == "-" for line in request.lines)
        plus = sum(line.sign == "+" for line in request.lines)
        size, other = request.description
        numbers = [word for word in size.replace(",", " ").split() if word.isdigit()]
        assert numbers == [str(number) for number in (minus, plus) if number]
        said = f"{request.title} {size} {other}".lower()
        for telling in ("bug", "fix", "refactor", "wrong", "behaviour", "harmless", "clean"):
            assert telling not in said.replace(request.kata.name.partition("_")[2], "")


def test_the_author_says_of_signatures_what_is_true(many):
    def signatures(text):
        nodes = ast.walk(ast.parse(text))
        return [
            (one.name, ast.dump(one.args))
            for one in nodes
            if hasattr(one, "args") and isinstance(one, ast.FunctionDef)
        ]

    for request in many:
        same = signatures(request.old) == signatures(request.new)
        other = request.description[1]
        if "parameters" in other:
            assert same
        if "signature" in other:
            assert not same


def test_a_seed_gives_the_same_requests_and_another_gives_others():
    def told(seed):
        return [(one.kata.name, one.title, one.old, one.new) for one in requests(seed, 8)]

    assert told(5) == told(5)
    assert told(5) != told(6)


def test_no_kata_comes_twice_in_a_row():
    names = [request.kata.name for request in requests(3, 46)]
    assert len(set(names)) == 46


def test_requests_keep_to_a_topic_and_to_a_kata():
    topics = {request.kata.topic for request in requests(count=10, topic=Topic.CONVOLUTION)}
    assert topics == {Topic.CONVOLUTION}
    kata = catalogue.find(REAL, "softmax")
    assert {request.kata.name for request in requests(count=5, kata=kata)} == {"03_softmax"}


def test_a_topic_without_katas_is_told(project):
    with pytest.raises(DojoError, match="no kata fits these wishes"):
        next(supply(project, topic=Topic.KERNELS))


def test_drafts_are_left_out(project, kata):
    text = (kata.folder / "kata.toml").read_text()
    (kata.folder / "kata.toml").write_text(text.replace("Adding is", "TODO Adding is"))
    with pytest.raises(DojoError, match="no kata fits these wishes"):
        next(supply(project))
    assert next(supply(project, kata=kata)).kata.name == "01_scale"


def test_a_bug_that_only_a_gpu_shows_or_nobody_sees_is_left_out(project, kata):
    toml = kata.folder / "kata.toml"
    toml.write_text(toml.read_text().replace('why = "Adding', 'gpu = true\nwhy = "Adding'))
    ids = {one.bug.id for one in Material(kata_toml.load(kata.folder)).catalogued}
    assert ids == {"divides", "subtracts-offset"}


def test_two_bugs_that_come_in_go_together_and_are_catalogued():
    drawn = 0
    for seed in range(120):
        kata = random.Random(seed).choice(["11_attention", "40_mini_gpt", "26_adamw"])
        request = draw_request(_materials(REAL.katas / kata), random.Random(seed), wrong=True)
        coming = [one.bug for one in request.changes if one.effect is Effect.BREAKS]
        bugs = [one.bug for one in request.changes if one.bug]
        if len(coming) > 1:
            drawn += 1
            assert not any(bug.id.startswith("fresh-") for bug in coming)
        for bug in bugs:
            others = {other.id for other in bugs} - {bug.id}
            assert not others & {*bug.apart, bug.over_fix_of}
    assert drawn


# Edits and refactorings


def test_edits_that_share_a_line_or_a_name_are_not_apart():
    source = ["a = 1", "b = a", "c = b", "d = 4"]
    one = Edit(0, 1, ("a = 2",))
    assert apart(source, one, Edit(1, 2, ("b = 3",)))
    assert not apart(source, one, Edit(0, 2, ("x",)))
    assert not apart(source, Edit(1, 1, ("x = 1",)), Edit(1, 1, ("y = 1",)))
    assert not apart(source, Edit(0, 3, ("x",)), Edit(2, 2, ("y",)))
    assert not apart(source, one, Edit(3, 4, ("d = 5",), frozenset({"a"})))
    assert apart(source, one, Edit(3, 4, ("d = 5",), frozenset({"d"})))


def test_a_difference_is_one_edit():
    source = ["a", "b", "c"]
    for other in (["a", "x", "c"], ["b", "c"], ["a", "b", "b", "c"], ["a", "b", "c", "d"]):
        edit = difference(source, other)
        assert edited(source, [edit]) == other
    assert difference(source, source) is None


CODE = '''
import torch


def f(x, eps=1e-5):
    """Return what f does."""
    n = 0
    for start in range(len(x)):
        n += 1
    if 0 <= n < 3:
        x = x[:n] * 2
    out = torch.sum(x, dim=0, keepdim=True)  # a row
    y = out * 3 / 4 if n > 2 else out
    return torch.cat([y, out + 1], dim=0)
'''
MADE = {
    "chains": "if 0 <= n and n < 3:",
    "comments": "# a row\n    out = torch.sum(x, dim=0, keepdim=True)",
    "conditionals": "y = out if not n > 2 else out * 3 / 4",
    "counters": "n = n + 1",
    "docstrings": '"""Give back what f does."""',
    "keywords": "torch.sum(x, keepdim=True, dim=0)",
    "mirrored": "if 2 < n else",
    "numbers": "eps=0.00001",
    "parentheses": "(out * 3) / 4",
    "ranges": "range(0, len(x))",
    "returns": "result = torch.cat([y, out + 1], dim=0)\n    return result",
    "renamings": "result * 3 / 4 if n > 2 else result",
    "slices": "x[0:n]",
    "swapped": "[y, 1 + out]",
}


@pytest.mark.parametrize("refactoring", REFACTORINGS, ids=lambda one: one.__name__)
def test_a_refactoring_changes_the_text_and_not_what_it_means(refactoring):
    text = Parsed.of(CODE)
    wanted = MADE[refactoring.__name__]
    made = {
        "\n".join(edited(text.lines, [proposal.edit])): proposal for proposal in refactoring(text)
    }
    found = [proposal for source, proposal in made.items() if wanted in source]
    assert found, list(made)
    for proposal in made.values():
        assert proposal.holds(text)
        assert proposal.reason


def refused(code, refactoring):
    return not [one for one in refactoring(Parsed.of(code)) if one.holds(Parsed.of(code))]


@pytest.mark.parametrize(
    ("code", "refactoring"),
    [
        ("def f(n):\n    n += 1", rewriting.counters),  # a tensor, for all that is known
        ("def f():\n    n = g()\n    n += 1", rewriting.counters),
        ("def f():\n    n = 0\n    def g():\n        nonlocal n\n    n += 1", rewriting.counters),
        ("f(a=g(), b=h())", rewriting.keywords),  # the order of the calls
        ("dict(a=1, b=2)", rewriting.keywords),
        ("def f(**rest): ...\nf(a=1, b=2)", rewriting.keywords),
        ("x = a < b", rewriting.mirrored),  # NumPy's comparison for torch's
        ("x = a + b", rewriting.swapped),  # lists
        ("x = a + 1 + b", rewriting.swapped),
        ("x = [a + 1 + b, 'b' * 2]", rewriting.swapped),
        ("x = f'{a[:2]}'", rewriting.slices),
        ("x = y[:2:2]", rewriting.slices),
        ("def f(out):\n    out = out + 1", renaming.renamings),
        ("def f():\n    out = 1\n    return lambda: out", renaming.renamings),
        ("def f():\n    out = 1\n    return f'{out=}'", renaming.renamings),
        ("def f():\n    out = 1\n    return out + result", renaming.renamings),
        ("def f():\n    out = 1  # out is new\n    return out", renaming.renamings),
        ("@triton.jit\ndef f(n):\n    return n[:2] + 1", rewriting.slices),
        ("def f():\n    x = 1  # noqa: E501", spelling.comments),
    ],
)
def test_what_is_not_certain_is_left_alone(code, refactoring):
    assert refused(code, refactoring)


def test_a_proposal_that_changes_something_does_not_hold():
    text = Parsed.of(CODE)
    proposal = next(spelling.parentheses(text))
    edit = Edit(proposal.edit.start, proposal.edit.stop, ("    y = out * (3 / 4)",))
    assert not type(proposal)(edit, "wrong", proposal.normal).holds(text)
    edit = Edit(proposal.edit.start, proposal.edit.stop, ("    y = (out * 3",))
    assert not type(proposal)(edit, "broken", proposal.normal).holds(text)


def test_every_proposal_for_every_reference_holds():
    for folder in catalogue.kata_folders(REAL)[::7]:
        text = Parsed.of(kata_toml.load(folder).correct_source)
        for refactoring in REFACTORINGS:
            assert all(one.holds(text) for one in list(refactoring(text))[::3])


# Scores


def test_sensitivity_and_bias_by_hand():
    # 3 of 4 bugs found, 1 of 6 right changes marked: 3.5/5 and 1.5/7, whose z are .5244 and -.7916
    result = Score(hits=3, misses=1, false_alarms=1, approvals=5)
    assert result.hit_rate == pytest.approx(0.7)
    assert result.sensitivity == pytest.approx(0.5244 + 0.7916, abs=1e-3)
    assert result.bias == pytest.approx((0.7916 - 0.5244) / 2, abs=1e-3)


def test_perfect_and_empty_scores_are_finite_or_none():
    perfect = Score(hits=4, approvals=4)
    assert perfect.sensitivity == pytest.approx(2 * NormalDist().inv_cdf(0.9))
    assert perfect.bias == pytest.approx(0)
    assert Score(hits=4).sensitivity is None
    assert Score(approvals=4).bias is None
    assert Score(hits=1, false_alarms=3).bias < 0 < Score(misses=3, approvals=3).bias


def test_changes_are_counted_as_trials():
    rows = [
        Reviewed("a", effect, "", None, marked)
        for effect, marked in [
            (Effect.BREAKS, True),
            (Effect.BREAKS, False),
            (Effect.MENDS, True),
            (Effect.MENDS, False),
            (Effect.HARMLESS, False),
        ]
    ]
    assert score(rows) == Score(1, 1, 1, 2)
    assert [mark(one) for one in rows] == ["found", "missed", "false alarm", "approved", "approved"]
    assert [one.right for one in rows] == [True, False, False, True, True]
    assert summary_lines(score(rows), 2)[0] == (
        "2 requests: 1 of 2 bugs found, 1 false alarm on 3 right changes"
    )
    assert summary_lines(Score(), 0) == ["No request was judged."]


# The desk and the history


def desk(history, *, count=5, seconds=None, now=lambda: 0.0, seed=0, **wishes):
    return Desk(supply(REAL, seed=seed, **wishes), history, count=count, seconds=seconds, now=now)


def test_a_mark_on_either_side_of_a_change_counts_for_it(history):
    round_ = desk(history, count=30)
    judged = []
    while (request := round_.next()) is not None:
        marks = set()
        for number, change in enumerate(request.changes):
            mine = [i for i, line in enumerate(request.lines) if line.change == number]
            assert mine
            if change.effect is Effect.BREAKS:
                marks.add(mine[-1 if len(judged) % 2 else 0])
        judged.append(round_.judge(request, marks))
    assert len(judged) == 30
    assert round_.score.misses == round_.score.false_alarms == 0
    assert round_.score.hits > 8
    assert {verdict_line(one) for one in judged} >= {
        "You found the bug.",
        "Nothing in it is wrong, as you said.",
    }


def test_what_was_said_is_kept(history):
    round_ = desk(history, count=2)
    first = round_.next()
    round_.judge(first, {first.numbered[0]})
    second = round_.next()
    round_.judge(second, set())
    kept = history.reviews.all()
    assert [len(one.changes) for one in kept] == [len(first.changes), len(second.changes)]
    assert [one.kata for one in kept[0].changes] == [first.kata.name] * len(first.changes)
    marked = first.lines[first.numbered[0]].change
    assert [one.marked for one in kept[0].changes] == [
        number == marked for number in range(len(first.changes))
    ]
    assert not any(one.marked for one in kept[1].changes)
    assert kept[0].changes == round_.judged[0].reviewed


def test_no_request_comes_once_the_time_is_over(history):
    clock = [0.0]
    round_ = desk(history, count=None, seconds=60, now=lambda: clock[0])
    for _ in range(7):
        request = round_.next()
        clock[0] += 9
        round_.judge(request, set())
    assert round_.has_more is False
    assert round_.next() is None
    assert [one.seconds for one in history.reviews.all()] == [9.0] * 7


def test_a_history_with_reviews_is_exported_and_merged_once(history, tmp_path):
    round_ = desk(history, count=3)
    while (request := round_.next()) is not None:
        round_.judge(request, set())
    text = export_history(history).encode()
    with History(tmp_path / "other.sqlite") as other:
        new = import_history(other, text, "mine.json")
        assert new["review"] == sum(len(one.changes) for one in history.reviews.all())
        assert import_history(other, text, "mine.json")["review"] == 0
        assert other.reviews.all() == history.reviews.all()
    assert import_history(history, text, "mine.json")["review"] == 0


@pytest.mark.parametrize(("column", "value"), [("effect", "helps"), ("kind", "colour")])
def test_a_damaged_review_is_not_imported(history, tmp_path, column, value):
    round_ = desk(history, count=1)
    round_.judge(round_.next(), set())
    document = json.loads(export_history(history))
    document["tables"]["review"][0][column] = value
    with (
        History(tmp_path / "other.sqlite") as other,
        pytest.raises(DojoError, match="is damaged"),
    ):
        import_history(other, json.dumps(document).encode(), "mine.json")


# What comes again


def reviewed(at, kind, marked, effect=Effect.BREAKS):
    return ReviewedRequest(at, 1.0, (Reviewed("01_scale", effect, "b", kind, marked),))


def test_a_kind_that_was_missed_is_due_before_one_that_was_found():
    at = datetime.now(UTC) - timedelta(days=3)
    due = scheduler.due_kinds(
        [
            reviewed(at, Kind.AXIS, True),
            reviewed(at, Kind.MASK, False),
            reviewed(at, Kind.SCALE, True, Effect.MENDS),
            reviewed(at, None, True, Effect.HARMLESS),
        ]
    )
    assert set(due) == {Kind.AXIS, Kind.MASK, Kind.SCALE}
    assert due[Kind.MASK] < due[Kind.AXIS]
    assert due[Kind.SCALE] == due[Kind.MASK]  # a mend that was refused was not understood


def test_kinds_that_are_due_come_first_then_those_never_met(history):
    history.reviews.add([Reviewed("a", Effect.BREAKS, "b", Kind.AXIS, False)], 1.0)
    history.reviews.add([Reviewed("a", Effect.BREAKS, "b", Kind.MASK, True)], 1.0)
    long_ago = (datetime.now(UTC) - timedelta(days=90)).isoformat()
    history.database.execute("UPDATE review SET at = ? WHERE kind = 'axis'", (long_ago,))
    order = kinds_by_need(history)
    assert order[0] is Kind.AXIS
    assert order[-1] is Kind.MASK
    assert sorted(order) == sorted(Kind)


def test_a_kind_that_is_needed_is_what_the_next_request_is_about(project, kata):
    toml = kata.folder / "kata.toml"
    title = 'title = "Subtracts the offset"\nkind = '
    toml.write_text(re.sub(rf'({title})"\w+"', r'\1"state"', toml.read_text()))
    kinds = [Kind.STATE, Kind.FORMULA]
    seen = []
    for _ in range(20):
        request = next(supply(project, kinds=kinds))
        seen += [change.kind for change in request.changes[:1] if change.bug]
        kinds_there = [one.kind for one in request.changes if one.bug]
        assert not kinds_there or Kind.STATE in kinds_there
    assert seen


# In plain lines


def review(project, *arguments, lines="", **options):
    return subprocess.run(
        [sys.executable, "-m", "dojo", "review", *arguments],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(project.root / "scripts")},
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_reviews_from_the_first_request_to_the_score(project):
    result = review(project, "--seed", "1", "--count", "2", lines="a\n1\n")
    assert result.returncode == 0, result.stderr
    assert "Request 1 of 2: " in result.stdout
    assert "Request 2 of 2: " in result.stdout
    assert "--- a/scale.py" in result.stdout
    assert "\n2 requests: " in result.stdout
    assert "\x1b" not in result.stdout
    with History(project.history) as history:
        kept = history.reviews.all()
    assert len(kept) == 2
    assert not any(one.marked for one in kept[0].changes)
    assert sum(one.marked for one in kept[1].changes) == 1


@pytest.mark.parametrize("answer", ["0", "99", "x", "1-", "3-1", "", "1 x", "-1", "1" * 30])
def test_an_answer_that_makes_no_sense_is_asked_for_again(project, answer):
    result = review(project, "--count", "1", lines=f"{answer}\na\n")
    assert "Give the numbers of lines, 1 to " in result.stdout
    assert "\n1 request: " in result.stdout


@pytest.mark.parametrize("lines", ["", "q\n"])
def test_the_end_of_the_input_ends_the_reviews(project, lines):
    result = review(project, lines=lines)
    assert result.returncode == 0
    assert result.stdout.endswith("No request was judged.\n")
    with History(project.history) as history:
        assert history.reviews.all() == []


def test_wishes_that_cannot_be_met_are_one_line(project):
    result = review(project, "--topic", "kernels")
    assert result.returncode == 1
    assert result.stderr == (
        "Error: no kata fits these wishes; scripts/list.sh shows katas and their topics\n"
    )
    assert "Traceback" not in review(project, "nothing").stderr
    runner = CliRunner()
    for wrong in (["scale", "--topic", "layers"], ["--html", "x", "--minutes", "1"], ["--count=0"]):
        assert runner.invoke(main, ["review", *wrong], obj=project).exit_code == 2


def test_spans_of_lines_are_marks(project):
    result = review(project, "--seed", "1", "--count", "1", lines="1-2\n")
    assert "\n1 request: " in result.stdout


def test_the_learners_file_stays_as_it_is(project, kata):
    before = kata.botched.read_bytes()
    review(project, "--count", "3", lines="a\na\na\n")
    assert kata.botched.read_bytes() == before
    with History(project.history) as history:
        assert history.attempts(kata.name) == []


# On the full screen


def shown(app):
    """Return the screen as text, as one would read it."""
    lines = app.screen._compositor.render_strips(app.screen.size)
    return "\n".join(line.text for line in lines)


def lead(desk, script, size=(110, 40)):
    """Run the app under a script of keys and checks."""
    app = ReviewApp(desk)

    async def run():
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(pilot)

    asyncio.run(run())
    return app


def test_a_request_is_read_marked_and_told(history):
    round_ = desk(history, count=2)

    async def script(pilot):
        screen = shown(pilot.app)
        assert "Request 1 of 2: " in screen
        assert "Mark what you would not let in." in screen
        await pilot.press("space")
        await pilot.pause()
        assert "●" in shown(pilot.app)
        await pilot.press("a")
        await pilot.pause()
        assert "You have marked lines" in shown(pilot.app)
        await pilot.press("enter")
        await pilot.pause()
        told = shown(pilot.app)
        assert "Enter goes on" in told
        assert "<- " in told
        assert len(round_.judged) == 1
        await pilot.press("a", "space")  # nothing is left to mark or to approve
        assert len(round_.judged) == 1
        await pilot.press("enter")
        await pilot.pause()
        assert "Request 2 of 2: " in shown(pilot.app)
        await pilot.press("enter")
        await pilot.pause()
        assert "Mark a line with space first, or approve with a." in shown(pilot.app)
        await pilot.press("space", "space", "a")
        await pilot.pause()
        assert "That was the last one" in shown(pilot.app)
        await pilot.press("enter")

    lead(round_, script)
    first, second = round_.judged
    place = first.request.numbered[0]
    assert [one.marked for one in first.reviewed].count(True) == 1
    assert first.reviewed[first.request.lines[place].change].marked
    assert not any(one.marked for one in second.reviewed)
    assert len(history.reviews.all()) == 2


def test_the_cursor_moves_by_keys_and_by_the_mouse(history):
    round_ = desk(history)

    async def script(pilot):
        diff = pilot.app.screen.query_one(MarkedDiff)
        start = diff._cursor
        await pilot.press("down")
        await pilot.press("j")
        assert diff._cursor == start + 2
        await pilot.press("k", "up")
        assert diff._cursor == start
        await pilot.press("home")
        await pilot.press("space")
        await pilot.pause()
        assert "Only a line that goes or comes can be marked." in shown(pilot.app)
        assert diff.marks == set()
        await pilot.press("n")
        assert diff._cursor == start
        await pilot.press("end")
        assert diff._cursor == len(diff._rows) - 1
        await pilot.press("p", "home", "p")
        await pilot.click(MarkedDiff, offset=(20, 1 + start))
        assert diff._cursor == start
        assert diff.marks == set()
        await pilot.click(MarkedDiff, offset=(20, 1 + start))
        assert diff.marks == {diff._rows[start]}
        await pilot.press("q")

    lead(round_, script)
    assert history.reviews.all() == []


@pytest.mark.parametrize("size", [(40, 15), (80, 24), (200, 60)])
def test_every_size_of_screen_shows_the_request(history, size):
    async def script(pilot):
        assert "Request 1 of 5" in shown(pilot.app)
        await pilot.press("a")
        await pilot.pause()
        assert "[" in shown(pilot.app)
        await pilot.press("tab", "down", "q")

    lead(desk(history), script, size)
    assert len(history.reviews.all()) == 1


def test_code_with_markup_is_shown_as_it_is(history, project, kata):
    text = kata.reference.read_text().replace("x: float,", "x: 'list[int]',")
    kata.reference.write_text(text)

    async def script(pilot):
        assert "list[int]" in shown(pilot.app)

    round_ = Desk(supply(project, seed=3), history)
    lead(round_, script)


# On a page


class Page(HTMLParser):
    """Reads what a page says, inside and outside of its folded parts, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.folded, self.open, self.loads, self._inside = "", "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self._inside.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data")]
        assert tag not in ("script", "link", "img", "iframe")

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if "style" in self._inside:
            return
        if "details" in self._inside:
            self.folded += data
        else:
            self.open += data


def test_a_page_has_ten_requests_with_their_answers_folded_away(project, tmp_path):
    path = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["review", "--seed", "7", "--html", str(path)], obj=project)
    assert result.exit_code == 0, result.output
    assert result.output == f"wrote {path}: 10 requests, seed 7\n"
    text = path.read_text()
    page = Page(text)
    assert page.loads == []
    assert text.count("<details>") == 10
    assert "<details open" not in text
    on_screen, _, on_paper = page.open.partition("Answers")
    for said in ("harmless", "brings in a bug", "Adding is not scaling."):
        assert said in page.folded
        assert said in on_paper
        assert said not in on_screen.partition("scripts/review.sh")[2]
    assert "scripts/review.sh --seed 7 --count 10" in page.open
    with History(project.history) as history:
        assert history.reviews.all() == []


def test_a_page_shows_the_requests_of_its_seed(tmp_path):
    drawn = requests(7, 3)
    page = Page(render_requests(drawn, 7))
    for request in drawn:
        assert request.title in page.open
        for line in request.lines:
            assert f"{line.sign} {line.text}" in page.open


def test_code_is_escaped_on_the_page(project, kata):
    text = kata.reference.read_text().replace("Return `x` times", "<b>&amp; `x` times")
    kata.reference.write_text(text)
    drawn = list(islice(supply(project, seed=1), 12))
    assert "<b>" in "".join(line.text for request in drawn for line in request.lines)
    text = render_requests(drawn, 1)
    assert "<b>" not in text
    assert "<b>&amp; `x` times" in Page(text).open


def test_a_page_that_cannot_be_written_is_one_line(project, tmp_path):
    target = tmp_path / "none" / "page.html"
    result = CliRunner().invoke(main, ["review", "--html", str(target)], obj=project)
    assert result.exit_code == 1
    assert "does not exist; make it first" in result.output


# In the statistics


def test_the_statistics_show_reviews_by_kind_and_by_topic(project, history):
    rows = [
        Reviewed("01_scale", Effect.BREAKS, "adds-factor", Kind.MASK, False),
        Reviewed("01_scale", Effect.BREAKS, "divides", Kind.AXIS, True),
        Reviewed("01_scale", Effect.BREAKS, "divides", Kind.AXIS, False),
        Reviewed("01_scale", Effect.MENDS, "divides", Kind.AXIS, True),
        Reviewed("99_gone", Effect.HARMLESS, "", None, False),
        Reviewed("01_scale", Effect.HARMLESS, "", None, False),
    ]
    for one in rows:
        history.reviews.add([one], 30.0)
    runner = CliRunner()
    said = runner.invoke(main, ["stats"], obj=project).output
    assert "6 requests, 3 min; 1 of 3 bugs found, 1 false alarm on 3 right changes" in said
    lines = [line.split() for line in said.splitlines()]
    kinds = [line[:4] for line in lines if line[:1] in (["axis"], ["mask"])]
    assert kinds[-2:] == [["mask", "0", "of", "1"], ["axis", "1", "of", "2"]]
    numbers = json.loads(runner.invoke(main, ["stats", "--json"], obj=project).output)["reviews"]
    assert numbers["requests"] == 6
    assert numbers["seconds"] == 180
    (topic,) = numbers["topics"]
    assert (topic["name"], topic["hits"], topic["approvals"]) == ("layers", 1, 1)
    axis = numbers["kinds"][1]
    assert (axis["hits"], axis["misses"], axis["false_alarms"], axis["approvals"]) == (1, 1, 1, 2)
    z = NormalDist().inv_cdf
    assert axis["sensitivity"] == pytest.approx(z(0.5) - z(1.5 / 4))


def test_the_page_of_statistics_has_reviews_only_once_there_are_some(project, history, tmp_path):
    runner = CliRunner()
    path = tmp_path / "stats.html"
    assert "Nothing practised yet" in runner.invoke(main, ["stats"], obj=project).output
    history.reviews.add([Reviewed("01_scale", Effect.HARMLESS, "", None, False)], 1.0)
    said = runner.invoke(main, ["stats"], obj=project).output
    assert "1 request, 0 min; 0 of 0 bugs found" in said
    assert "kind of bug" not in said
    runner.invoke(main, ["stats", "--html", str(path)], obj=project)
    assert "<h2>Reviews</h2>" in path.read_text()


def test_a_kata_that_cannot_be_read_ends_the_reviews_in_one_line(history, kata):
    first = next(supply(REAL, seed=1))

    def broken():
        yield first
        raise DojoError("kata.toml is malformed")

    async def script(pilot):
        await pilot.press("a", "enter")

    app = lead(Desk(broken(), history), script)
    assert str(app.return_value) == "kata.toml is malformed"
    assert len(history.reviews.all()) == 1


# What requests rest on


def test_what_requests_rest_on_is_run_and_true(kata, runner):
    found = claims(kata, 30)
    assert len({claim.source for claim in found}) == len(found)
    assert kata.correct_source not in {claim.source for claim in found}
    assert [claim.problem(claim.run(runner, kata)) for claim in found] == [None] * len(found)
    assert any(claim.bugs for claim in found)
    assert not all(claim.bugs for claim in found)


def test_every_change_that_is_listed_as_equivalent_is_run(kata):
    entry = '{ function = "shift", before = "moved = x + offset", after = "moved = offset + x" }'
    (kata.folder / "mutants.toml").write_text(
        f'[[survivors]]\nkind = "equivalent"\nreason = "A sum."\nmutants = [{entry}]\n'
    )
    (claim,) = claims(kata, 0)
    assert "moved = offset + x" in claim.source
    assert claim.said == "what mutants.toml calls equivalent (A sum.)"


@pytest.mark.parametrize("reason", ["It is for speed.", "Undefined, 0 in the interpreter."])
def test_what_is_harmless_in_one_place_alone_is_not_shown(kata, reason):
    entry = '{ function = "shift", before = "moved = x + offset", after = "moved = offset + x" }'
    (kata.folder / "mutants.toml").write_text(
        f'[[survivors]]\nkind = "equivalent"\nreason = "{reason}"\nmutants = [{entry}]\n'
    )
    assert Material(kata).equivalents == []


def test_no_equivalent_of_a_kernel_is_shown():
    assert Material(catalogue.find(REAL, "triton_attention")).equivalents == []


def test_what_is_not_true_is_told(kata, runner):
    wrong = Claim(kata.correct_source.replace("x * factor", "x + factor"), (), "a change")
    assert "review: a change does not pass test_scale" in wrong.problem(wrong.run(runner, kata))
    right = Claim(kata.correct_source, (kata.bugs[0],), "the new side")
    assert right.problem(right.run(runner, kata)) == "review: the new side is not caught: passed"


@pytest.mark.slow
def test_what_a_thousand_requests_rest_on_is_true():
    # Tests of kernels and of systems take seconds a run: a whole check draws fewer for each.
    katas = [
        kata for kata in catalogue.finished(REAL) if not kata.needs_triton and not kata.is_system
    ]
    problems = []
    with runner_pool(REAL) as pool:
        for kata in katas:
            found = claims(kata, 1000 // len(katas) + 1)

            def run(runner, claim, kata=kata):
                return claim.problem(claim.run(runner, kata))

            problems += [f"{kata.name}: {one}" for one in pool.map(run, found) if one]
    assert problems == []


# Beside a practice session


def test_a_kata_of_a_session_that_goes_on_is_left_out(project, kata, system, history):
    history.sessions.begin([(kata.name, ["divides"], 60.0)], interview=True)
    assert under_way(history) == {kata.name}
    drawn = islice(supply(project, without=under_way(history)), 6)
    assert {request.kata.name for request in drawn} == {system.name}


def test_a_kata_of_an_interview_is_refused(project, kata, history):
    planned = [Planned(kata, ("adds-factor",), 60.0)]
    practice = session.begin(project, history, planned, interview=True)
    practice.next_round()
    result = CliRunner().invoke(main, ["review", "scale"], obj=project, input="q\n")
    assert result.exit_code == 1
    assert "01_scale is under way in an interview" in result.output
