import json
import random
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import CatalogueError
from dojo.kata import catalogue, kata_toml
from dojo.kata.bug import Kind
from dojo.kata.planting import conflict, plant
from dojo.project import Project
from dojo.testrun.results import test_functions
from dojo.verification.mutation import selection
from dojo.verification.mutation.judging import Judged, all_mutants
from dojo.verification.mutation.mutants import changed_lines, mutants
from dojo.verification.mutation.result_store import MutantOutcome, Trial

REAL = Project.here()


def trial(mutant="key", behaviour="one", failing=("test_scale",), **facts):
    whole = {
        "outcome": MutantOutcome.CAUGHT,
        "ended": True,
        "passing": 1,
        "wrong": 5,
        "raised": 0,
        **facts,
    }
    return Trial(mutant, 0, True, failing=failing, behaviour=behaviour, **whole)


def judged(kata, count=None):
    """Mutants of the kata that all make good bugs, each with a behaviour of its own."""
    found = all_mutants(kata)[:count]
    return [Judged(kata, mutant, trial(mutant.key, mutant.key)) for mutant in found]


@pytest.fixture
def cli(project):
    def call(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments], obj=project)

    return call


@pytest.fixture
def fresh(kata):
    """The kata with fresh bugs, the first half of which fail the one test, the others the other."""
    good = selection.candidates(selection.hopeful(kata, judged(kata)))
    middle = len(good) // 2
    tests = [("test_scale",)] * middle + [("test_shift",)] * (len(good) - middle)
    chosen = [
        (replace(one, trial=replace(one.trial, failing=killed_by)), trial(failing=killed_by))
        for one, killed_by in zip(good, tests, strict=True)
    ]
    assert selection.record(kata, chosen) == len(good) > 5
    return kata_toml.load(kata.folder)


@pytest.mark.parametrize(
    ("facts", "good"),
    [
        ({}, True),
        ({"wrong": 4, "raised": 1}, True),
        ({"wrong": 3, "raised": 1}, False),  # more than a fifth crashes
        ({"wrong": 0}, False),
        ({"passing": 0}, False),  # every test fails
        ({"ended": False}, False),
        ({"outcome": MutantOutcome.SURVIVED, "failing": ()}, False),
    ],
)
def test_what_makes_a_good_bug(facts, good):
    assert selection.is_good(trial(**facts)) is good


def test_bugs_that_behave_alike_or_are_catalogued_are_not_chosen_twice(kata):
    many = judged(kata)
    alike = [replace(one, trial=trial(one.mutant.key, "same")) for one in many]
    assert len(selection.candidates(alike)) == 1
    chosen = {one.mutant.after for one in selection.hopeful(kata, many)}
    assert "return x + factor" not in chosen  # adds-factor
    assert "return -x * factor" in chosen


def test_most_bugs_are_chosen_evenly_over_operators(kata, monkeypatch):
    names = ["DropTerm", "DropTerm", "DropTerm", "DropTerm", "SwapOperands", "ConfuseName"]
    many = [
        replace(one, mutant=replace(one.mutant, operator=f"dojo/{name}"))
        for one, name in zip(selection.hopeful(kata, judged(kata)), names, strict=False)
    ]
    monkeypatch.setattr(selection, "MOST", 4)
    hopeful = selection.hopeful(kata, many)
    chosen = [one.mutant.operator for one in selection.candidates(hopeful)]
    assert sorted(chosen) == [
        "dojo/ConfuseName",
        "dojo/DropTerm",
        "dojo/DropTerm",
        "dojo/SwapOperands",
    ]


def test_what_nobody_writes_is_not_chosen(kata):
    one = judged(kata, 1)[0]
    for after in ("return x * -0", "return (x) * factor", "return x  * factor"):
        odd = replace(one, mutant=replace(one.mutant, after=after))
        assert selection.hopeful(kata, [odd]) == []


def test_a_typo_in_a_formula_is_not_chosen(kata):
    one = judged(kata, 1)[0]
    for operator, before, after in (
        ("core/ReplaceBinaryOperator_Mul_Div", "x * factor", "x / factor"),
        ("core/ReplaceComparisonOperator_Eq_NotEq", "x == 1", "x != 1"),
        ("core/NumberReplacer", "eps = 1e-5", "eps = -0.999990"),
        ("core/NumberReplacer", "base: float = 10000.0", "base: float = 9999.0"),
    ):
        odd = replace(one.mutant, operator=operator, before=before, after=after)
        assert selection.hopeful(kata, [replace(one, mutant=odd)]) == []
    off_by_one = replace(
        one.mutant, operator="core/NumberReplacer", before="x[:, 1]", after="x[:, 2]"
    )
    assert len(selection.hopeful(kata, [replace(one, mutant=off_by_one)])) == 1


def test_no_operator_makes_most_of_the_bugs(kata):
    (one,) = judged(kata, 1)
    alike = [
        replace(one, trial=replace(one.trial, behaviour=f"b{n}"))
        for n in range(3 * selection.MOST_OF_ONE_OPERATOR)
    ]
    assert len(selection.candidates(alike)) == selection.MOST_OF_ONE_OPERATOR


def test_what_holds_under_one_seed_alone_is_not_recorded(kata):
    chosen = judged(kata, 3)
    second = [trial(), trial(passing=0), trial(failing=("test_shift",))]
    assert selection.record(kata, list(zip(chosen, second, strict=True))) == 1


def test_an_edit_stands_once_and_makes_the_mutant():
    source = "def f(x):\n    y = x + 1\n    return y\n\n\ndef g(x):\n    y = x + 1\n    return y\n"
    for mutant in mutants(source):
        find, replacement = selection.edit(source, mutant.source)
        assert source.count(find) == 1
        assert source.replace(find, replacement) == mutant.source
        assert changed_lines(find, replacement)[0] <= 3  # no more context than is needed


def test_a_fresh_bug_is_planted_hinted_at_revealed_and_undone(cli, kata, fresh):
    bug = fresh.fresh[0]
    before = kata.botched.read_text()
    assert cli("reset", "scale", "--bugs", bug.id).exit_code == 0
    assert kata.botched.read_text() == plant(kata.correct_source, [bug])
    assert bug.hints[0] in cli("hint", "scale").output
    revealed = cli("reveal", "scale", "--yes").output
    assert bug.title in revealed
    _, old, new = changed_lines(bug.find, bug.replace)
    told = " ".join(revealed.partition(bug.title)[2].split())
    assert " ".join(f"wrong: {new} right: {old}".split()) in told
    cli("undo", "scale")
    assert kata.botched.read_text() == before


@pytest.mark.parametrize(
    ("operator", "kind"), [("dojo/DropMask", Kind.MASK), ("dojo/ChangeAxis", Kind.AXIS)]
)
def test_a_fresh_bug_is_of_the_kind_of_its_operator(kata, fresh, operator, kind):
    first = json.loads(kata.fresh_file.read_text())[0]
    kata.fresh_file.write_text(json.dumps([{**first, "operator": operator}]))
    assert [bug.kind for bug in kata_toml.load(kata.folder).fresh] == [kind]


def test_a_seed_draws_the_same_fresh_bugs_everywhere(cli, kata, fresh):
    said = cli("reset", "scale", "--fresh", "--seed", 7).output
    first = kata.botched.read_text()
    assert "01_scale: 1 bug planted (fresh, --seed 7)" in said
    cli("reset", "scale")
    cli("reset", "scale", "--fresh", "--seed", 7)
    assert kata.botched.read_text() == first
    assert first not in {kata.planted_source((bug.id,)) for bug in kata.bugs}
    assert first in {kata.planted_source((bug.id,)) for bug in fresh.fresh}
    texts = set()
    for seed in range(20):
        cli("reset", "scale", "--fresh", "--seed", seed)
        texts.add(kata.botched.read_text())
    assert len(texts) > 3


def test_without_a_seed_the_one_drawn_is_told(cli, kata, fresh):
    said = cli("reset", "scale", "--fresh").output
    text = kata.botched.read_text()
    seed = said.partition("--seed ")[2].partition(")")[0]
    cli("reset", "scale")
    cli("reset", "scale", "--fresh", "--seed", seed)
    assert kata.botched.read_text() == text
    assert not any(bug.id in said for bug in fresh.fresh)


def test_fresh_bugs_drawn_together_touch_other_lines_and_fail_other_tests(cli, kata, player, fresh):
    for seed in range(10):
        assert cli("reset", "scale", "--fresh", "--count", 2, "--seed", seed).exit_code == 0
        one, other = player.planting().bugs
        assert conflict(kata.correct_source, [one, other]) is None
        assert set(one.killed_by) != set(other.killed_by)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--fresh"],
            "01_scale has no fresh bugs; scripts/verify.sh --mutants 01_scale --record",
        ),
        (["--fresh", "--bugs", "divides"], "give one kind"),
        (["--bugs", "fresh-nonsense"], "has no bug 'fresh-nonsense'"),
    ],
)
def test_what_cannot_be_planted_is_said(cli, kata, arguments, reason):
    before = kata.botched.read_bytes()
    result = cli("reset", "scale", *arguments)
    assert result.exit_code in (1, 2)
    assert reason in result.output
    assert kata.botched.read_bytes() == before


@pytest.mark.parametrize("text", ["[{}]", "{", '[{"id": 3}]', "null"])
def test_a_malformed_file_is_refused(kata, text):
    kata.fresh_file.write_text(text)
    with pytest.raises(CatalogueError, match="--record makes the file anew"):
        _ = kata.fresh


def test_bugs_of_another_reference_are_refused(cli, kata, fresh):
    kata.reference.write_text(kata.correct_source.replace("x + offset", "offset + x"))
    toml = kata.folder / "kata.toml"
    toml.write_text(toml.read_text().replace("x + offset", "offset + x"))
    result = cli("reset", "scale", "--fresh")
    assert result.exit_code == 1
    assert "does not fit reference.py" in result.output


def test_a_fresh_bug_that_has_gone_is_said(cli, kata, project, fresh):
    cli("reset", "scale", "--bugs", fresh.fresh[0].id)
    kata.fresh_file.unlink()
    assert f"no longer has ({fresh.fresh[0].id})" in cli("hint", "scale").output


# Of a system they are recorded later: its mutants take hours.
RECORDED = [
    kata for kata in catalogue.finished(REAL) if kata.fresh_file.is_file() or not kata.is_system
]


@pytest.mark.parametrize("kata", RECORDED, ids=lambda kata: kata.name)
def test_every_kata_has_many_fresh_bugs_that_fit_it(kata):
    bugs = kata.fresh  # each of them stands once in the reference
    assert len({bug.id for bug in bugs}) == len(bugs) >= 20
    assert len({plant(kata.correct_source, [bug]) for bug in bugs}) == len(bugs)
    for bug in bugs:
        assert bug.killed_by
        assert set(bug.killed_by) < test_functions(kata.tests)
    for bug in random.Random(0).sample(bugs, min(5, len(bugs))):
        compile(plant(kata.correct_source, [bug]), bug.id, "exec")
