"""A class's grades as one page of HTML, which needs nothing from anywhere else."""

from collections.abc import Mapping, Sequence

from dojo.classroom.grading import Grade, Standing
from dojo.classroom.summary import missed_bugs, missed_kinds
from dojo.kata.kata import Kata
from dojo.wording.grades import gone, notes
from dojo.wording.pages import templates
from dojo.wording.quantities import count

_BUGS = 10  # of those missed, the first ones


def render_class(grades: Sequence[Grade], katas: Mapping[str, Kata]) -> str:
    """Return the page: learners by katas, what was missed most, and each submission."""
    environment = templates()
    environment.filters.update(count=count, gone=gone, notes=notes)
    cells: dict[tuple[str, str], Grade] = {}
    for grade in grades:
        cells.setdefault((grade.learner, grade.kata), grade)
    return environment.get_template("class.html").render(
        grades=grades,
        cells=cells,
        learners=list(dict.fromkeys(grade.learner for grade in grades)),
        katas=sorted({grade.kata for grade in grades if grade.kata}),
        solved=sum(grade.standing is Standing.SOLVED for grade in grades),
        solved_by={
            kata: sum(g.kata == kata and g.standing is Standing.SOLVED for g in grades)
            for kata in katas
        },
        SOLVED=Standing.SOLVED,
        kinds=missed_kinds(grades, katas),
        bugs=missed_bugs(grades, katas)[:_BUGS],
    )
