import random
from dataclasses import replace

import pytest

from dojo.errors import DojoError
from dojo.kata.drawing import draw_bugs
from dojo.kata.planting import choose, conflict, plant, span


def test_planting_edits_the_reference_and_nothing_else(kata):
    source = kata.planted_source(("adds-factor", "subtracts-offset"))
    assert "return x + factor" in source
    assert "moved = x - offset" in source
    back = source.replace("x + factor", "x * factor").replace("x - offset", "x + offset")
    assert back == kata.correct_source


def test_the_order_of_bugs_does_not_matter(kata):
    one = kata.planted_source(("adds-factor", "subtracts-offset"))
    assert one == kata.planted_source(("subtracts-offset", "adds-factor"))


def test_bugs_on_the_same_line_conflict(kata):
    bugs = [kata.bug("adds-factor"), kata.bug("divides")]
    assert conflict(kata.correct_source, bugs) == ("adds-factor", "divides")
    with pytest.raises(DojoError, match="touch the same lines"):
        kata.planted_source(("adds-factor", "divides"))


def test_a_replacement_that_holds_another_find_is_left_alone(kata):
    class Edit:
        def __init__(self, find, replace):
            self.id, self.find, self.replace = find, find, replace

    edits = [Edit("one", "two"), Edit("two", "one")]
    assert plant("one\ntwo\n", edits) == "two\none\n"


def test_span_counts_lines_from_one(kata):
    assert span("a\nb\nc\n", type("Edit", (), {"find": "b\nc"})()) == (2, 3)


def test_a_draw_never_conflicts_and_is_refused_when_impossible(kata):
    for seed in range(30):
        chosen = choose(kata.correct_source, kata.bugs, 2, random.Random(seed))
        assert not conflict(kata.correct_source, chosen)
    assert choose(kata.correct_source, kata.bugs, 3, random.Random(0)) is None


def test_bugs_that_are_kept_apart_are_not_drawn_together(kata):
    adds, divides, subtracts = kata.bugs
    bugs = [replace(adds, apart=("subtracts-offset",)), divides, subtracts]
    drawn = {draw_bugs(kata, 2, seed, bugs) for seed in range(20)}
    assert drawn == {("divides", "subtracts-offset")}
    with pytest.raises(DojoError, match="no 2 bugs"):
        draw_bugs(kata, 2, 7, [bugs[0], subtracts])


def test_a_seed_gives_the_same_bugs_on_every_machine(kata):
    # Literal on purpose: what one person shares must be what another gets, also in years.
    assert draw_bugs(kata, 2, 7) == ("divides", "subtracts-offset")
    assert [draw_bugs(kata, 1, seed) for seed in (1, 2, 3)] == [
        draw_bugs(kata, 1, seed) for seed in (1, 2, 3)
    ]
    with pytest.raises(DojoError, match="no 3 bugs"):
        draw_bugs(kata, 3, 7)
    with pytest.raises(DojoError, match="at least 1"):
        draw_bugs(kata, 0, 7)
