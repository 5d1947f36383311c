"""What healthy runs look like, where a run departs from them, and how that is drawn."""

import json
import math
import random
import re
from html.parser import HTMLParser

import pytest

from dojo.errors import CatalogueError, DojoError
from dojo.instruments.bands import Band, means, read_band
from dojo.instruments.curves import Curve, curves, departures, short
from dojo.runner.log import Printed, RunLog, Step
from dojo.wording.axes import Axis
from dojo.wording.curves import BAND, CURVE, draw
from dojo.wording.logs import LogLines
from dojo.wording.run_page import render_run

STEPS = 100


def run_of(seed, end=0.1, steps=STEPS):
    """A loss that falls to `end` with noise, a schedule, and an accuracy now and then."""
    rng = random.Random(seed)
    pace = rng.uniform(0.06, 0.08)
    for step in range(steps):
        numbers = {
            "loss": max(end, 3 * math.exp(-pace * step)) + rng.gauss(0, 0.05),
            "lr": 0.1 * (1 - step / steps),
        }
        if step % 10 == 9:
            numbers["accuracy"] = 0.9 + rng.uniform(-0.02, 0.02)
        yield numbers


def changed(log, name, change, since=1, until=STEPS):
    return [
        {**step, name: change(step[name])} if name in step and since <= at <= until else step
        for at, step in enumerate(log, 1)
    ]


@pytest.fixture(scope="module")
def band():
    return Band.of([list(run_of(seed)) for seed in range(10)], "abc")


@pytest.fixture
def healthy():
    return list(run_of(77))


def sentences(log, band, **options):
    return [str(departure) for departure in departures(log, band, **options)]


def test_a_healthy_run_stays_inside(band):
    outside = [seed for seed in range(10, 210) if departures(list(run_of(seed)), band)]
    assert len(outside) <= 1


@pytest.mark.parametrize("seed", range(100, 105))
def test_a_loss_that_ends_too_high_leaves_the_band(band, seed):
    (found,) = departures(list(run_of(seed, end=1.0)), band)
    assert found.name == "loss"
    assert 5 <= found.step <= 60
    assert re.fullmatch(
        rf"loss is above healthy runs from step {found.step} on: 1\.\d+ at step \d+, "
        r"healthy 0\.\d+ to 0\.\d+",
        found.sentence,
    )


def test_a_loss_that_is_too_low_leaves_the_band(band, healthy):
    (said,) = sentences(changed(healthy, "loss", lambda x: x - 1, since=61), band)
    assert re.match(r"loss is below healthy runs from step 6\d on: -0\.\d+ at step", said)


def test_the_worst_departure_is_told_and_the_first_is_named(band, healthy):
    log = changed(healthy, "lr", lambda lr: lr + 0.01, since=11, until=11)
    log = changed(log, "lr", lambda lr: lr + 1, since=50)
    (found,) = departures(log, band)
    assert found.step == 11
    assert re.fullmatch(
        r"lr is above healthy runs from step 50 on: 1\.0\d+ at step \d+, healthy 0\.0\d+ "
        r"\(outside first at step 11\)",
        found.sentence,
    )
    log = changed(
        changed(healthy, "loss", lambda x: x + 3, since=40), "loss", lambda _: math.nan, since=60
    )
    assert sentences(log, band)[0].startswith("loss is NaN from step 60 on; healthy ")
    assert sentences(log, band)[0].endswith(" (outside first at step 40)")


def test_where_healthy_runs_agree_one_step_is_enough(band, healthy):
    late = changed(healthy, "lr", lambda lr: lr * 1.02, since=50, until=50)
    (found,) = departures(late, band)
    # The mean of five steps is off for as long as the step is among them.
    assert found.sentence.startswith("lr is above healthy runs from step 50 to 54: 0.05")
    assert (found.name, found.step) == ("lr", 50)
    rounded = changed(healthy, "lr", lambda lr: lr * (1 + 1e-6))
    assert departures(rounded, band) == []


def test_where_healthy_runs_differ_one_step_is_chance(band, healthy):
    assert departures(changed(healthy, "loss", lambda x: x + 2, since=60, until=60), band) != []
    assert (
        departures(changed(healthy, "accuracy", lambda x: x - 0.3, since=60, until=70), band) == []
    )
    assert departures(changed(healthy, "accuracy", lambda x: x - 0.3, since=60), band) != []


def test_nan_and_what_is_missing_leave_the_band_at_once(band, healthy):
    nan = changed(healthy, "loss", lambda _: math.nan, since=37, until=37)
    assert re.match(r"loss is NaN at step 37; healthy 0\.\d+ to 0\.\d+", sentences(nan, band)[0])
    nan = changed(healthy, "loss", lambda _: math.nan, since=37)
    assert sentences(nan, band)[0].startswith("loss is NaN from step 37 on; healthy ")
    infinite = changed(healthy, "loss", lambda _: math.inf, since=37)
    assert sentences(infinite, band)[0].startswith(
        "loss is above healthy runs from step 37 on: inf"
    )
    without = [{"loss": step["loss"], "lr": step["lr"]} for step in healthy]
    assert sentences(without, band)[0].startswith("accuracy is missing from step 10 on; healthy 0.")


def test_a_run_that_is_cut_off_is_judged_as_far_as_it_went(band, healthy):
    assert departures(healthy[:40], band, ended=False) == []
    assert sentences(healthy[:40], band) == ["the run has 40 steps, healthy runs 100"]
    assert sentences([*healthy, healthy[-1]], band) == ["the run has 101 steps, healthy runs 100"]
    assert departures([], band, ended=False) == []


def test_departures_come_in_the_order_of_their_steps_and_others_do_not_count(band, healthy):
    log = changed(healthy, "lr", lambda lr: lr * 2, since=70)
    log = changed(log, "loss", lambda x: x + 3, since=40)
    log = [{**step, "mine": 5.0} for step in log]
    assert [found.name for found in departures(log, band)] == ["loss", "lr"]


def test_nothing_is_said_where_healthy_runs_have_no_finite_number():
    logs = [[{"norm": 1.0 + seed}, {"norm": math.inf}, {"norm": 2.0}] for seed in range(3)]
    band = Band.of(logs, "abc")
    assert [span is None for span in band.spans("norm")] == [False, True, False]
    assert departures([{"norm": 1.0}, {"norm": math.nan}, {"norm": 2.0}], band) == []
    assert departures([{"norm": 1.0}, {}, {"norm": 2.0}], band) == []


def test_runs_of_different_lengths_make_no_band():
    with pytest.raises(DojoError, match="from 1 to 2 steps"):
        Band.of([[{"loss": 1.0}], [{"loss": 1.0}, {"loss": 1.0}]], "abc")


def test_means_are_of_the_last_steps_that_logged_the_number():
    log = [{"a": 1.0}, {"a": 3.0, "b": 7.0}, {"a": math.inf}, {"a": 5.0}]
    assert means(log, 2) == [{"a": 1.0}, {"a": 2.0, "b": 7.0}, {"a": math.inf}, {"a": 5.0}]
    assert means(log, 1) == log


def test_a_band_is_the_same_once_it_is_read(band, tmp_path, healthy):
    path = tmp_path / "healthy.json"
    path.write_text(band.as_json())
    read = read_band(path)
    assert (read.reference, read.seeds, read.steps) == ("abc", 10, STEPS)
    assert read.numbers["accuracy"].low[:9] == (None,) * 9
    for name in band.numbers:
        for wrote, found in zip(band.spans(name), read.spans(name), strict=True):
            assert (wrote is None) == (found is None)
            assert wrote is None or found.low == pytest.approx(wrote.low, rel=1e-5)
    assert departures(healthy, read) == []
    facts = json.loads(path.read_text())
    assert set(facts["numbers"]) == {"loss", "lr", "accuracy"}
    # A line a list: a new recording can be read as a diff.
    assert path.read_text().count("\n") == 4 + 4 * 3 + 3
    assert read_band(tmp_path / "none.json") is None
    path.write_text('{"reference": "abc"}')
    with pytest.raises(CatalogueError, match=r"KeyError: 'seeds'|KeyError: 'numbers'"):
        read_band(path)


def curve_of(values, band=None, name="loss"):
    return next(c for c in curves([{name: v} for v in values], band) if c.name == name)


@pytest.mark.parametrize(("width", "height"), [(40, 6), (80, 12), (100, 30)])
def test_a_drawing_keeps_to_its_size(band, healthy, width, height):
    for curve in curves(healthy, band):
        lines = draw(curve, width, height).split("\n")
        assert len(lines) == height
        assert max(map(len, lines)) <= width
        assert lines[0].startswith(f"{curve.name}, mean of 5 steps")
        assert lines[-1].split() == ["step", "1", "step", "100"]
        assert CURVE.search(draw(curve, width, height))


def test_a_curve_outside_lies_beside_the_band(band):
    drawn = {curve.name: draw(curve, 80, 12) for curve in curves(list(run_of(0, end=2.5)), band)}
    rows = drawn["loss"].split("\n")[1:-1]
    ends = [row[60:].rstrip() for row in rows]
    curve_at = [at for at, end in enumerate(ends) if CURVE.search(end)]
    band_at = [at for at, end in enumerate(ends) if BAND.search(end)]
    assert max(curve_at) < min(band_at)


def test_a_curve_within_the_band_covers_it(band, healthy):
    rows = draw(curves(healthy, band)[0], 80, 12).split("\n")[1:-1]
    cells = ["".join(row.ljust(80)[column] for row in rows) for column in range(12, 80)]
    assert all(CURVE.search(column) for column in cells)
    assert sum(BAND.search(column) is not None for column in cells) > 50


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([4.0, 1.0, 0.02], True),
        ([4.0, 1.0, 0.2], False),
        ([4.0, 0.01, 0.0], False),
        ([-1, 5], False),
    ],
)
def test_what_falls_far_gets_a_logarithmic_axis(values, logarithmic):
    axis = Axis.of(curve_of(values))
    assert axis.logarithmic == logarithmic
    assert [axis.value(axis.place(value)) for value in values] == pytest.approx(values)
    assert (axis.place(-1e9), axis.place(1e9)) == (0, 1)


def test_what_cannot_be_drawn_is_left_out():
    assert draw(curve_of([math.nan, math.inf]), 60, 8) == "loss: no finite number to draw"
    assert len(draw(curve_of([0.0, 0.0, 0.0]), 60, 8).split("\n")) == 8
    broken = draw(curve_of([1.0, 2.0, math.nan, math.inf, 3.0]), 60, 8)
    assert CURVE.search(broken)
    assert len(draw(curve_of([5.0]), 60, 8).split("\n")) == 8


def shown(steps, known=None, names=("loss",)):
    lines = LogLines(known)
    out = []
    for step in range(1, steps + 1):
        out += lines.lines(Step(dict.fromkeys(names, step / 7)))
    return [*out, *lines.last()]


def test_a_log_is_thinned_out_and_keeps_its_first_and_last_step():
    def numbers(lines):
        return [int(line.split()[1]) for line in lines]

    assert numbers(shown(12, known=12)) == list(range(1, 13))
    assert numbers(shown(205, known=205)) == [1, *range(10, 201, 10), 205]
    assert numbers(shown(37, known=200)) == [1, 10, 20, 30, 37]
    unknown = numbers(shown(345))
    assert unknown == [*range(1, 10), *range(10, 100, 10), 100, 200, 300, 345]
    assert shown(0) == []


def test_numbers_stand_below_each_other():
    lines = LogLines(3)
    steps = [{"loss": 1.0, "lr": 1e-5}, {"loss": -123.456, "scale": 65536.0}, {"scale": 1e30}]
    out = [line for step in steps for line in lines.lines(Step(step))]
    assert out == [
        "step     1  loss         1  lr     1e-05",
        "step     2  loss    -123.5                scale     65536",
        "step     3                                scale     1e+30",
    ]


def test_what_is_printed_is_folded_and_fit_for_a_screen():
    lines = LogLines(1)
    out = [line for n in range(13) for line in lines.lines(Printed(f"\x1b[31m{n}\r"))]
    assert out == [str(n) for n in range(10)]
    assert list(lines.lines(Step({"loss": 1.0}))) == [
        "... 3 more lines",
        "step     1  loss         1",
    ]
    assert list(lines.lines(Printed("after"))) == ["after"]
    assert list(lines.last()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (65536.0, "65536"),
        (0.03125, "0.03125"),
        (1e-5, "1e-05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_is_short(value, text):
    assert short(value) == text


class Reader(HTMLParser):
    """Notes a page's text and what it loads, and fails where a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.sources, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


def test_a_page_draws_every_number(band, healthy):
    log = changed(healthy, "loss", lambda x: x + 3, since=40)
    log[60]["loss"] = math.nan
    left = departures(log, band)
    page = render_run(
        "<gpt>", 3, RunLog(tuple(log), "step 101: </script>", 1.5), curves(log, band), left
    )
    read = Reader(page)
    assert read.sources == []
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("<svg") == 3
    for said in ("<gpt>: a run", "Seed 3, 100 steps in 1.5 s", "Stopped at step 101: </script>"):
        assert said in read.text
    assert left[0].sentence in read.text
    (loss, lr, accuracy) = json.loads(re.search(r"^const drawings = (.*);$", page, re.MULTILINE)[1])
    assert (loss["steps"], loss["window"]) == (100, 5)
    assert loss["numbers"][60] == "nan"
    assert lr["healthy"][0] == ["0.1", "0.1"]
    assert (accuracy["healthy"][0], accuracy["numbers"][0]) == (None, "nothing")
    # A piece of the mean and one of the steps before the NaN, and one each behind it.
    loss_drawing = page.split("<svg")[1].partition("</svg>")[0]
    assert loss_drawing.count("<polyline") == 4
    places = re.findall(r"(-?[\d.]+),(-?[\d.]+)", loss_drawing)
    assert all(0 <= float(x) <= 720 and 0 <= float(y) <= 180 for x, y in places)


def test_a_curve_of_its_own_has_no_band():
    (curve,) = curves([{"loss": 1.0}, {"loss": 2.0}], None)
    assert curve == Curve("loss", (1.0, 2.0), (1.0, 2.0), 1, ())
