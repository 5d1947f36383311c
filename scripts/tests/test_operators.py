"""The mutation operators: what each makes of its examples, and that each is explained."""

import ast
import subprocess
import sys

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import operator_names

from dojo.kata.bug import Kind
from dojo.kata.explanations import EXPLANATIONS, explain
from dojo.project import Project
from dojo.verification.mutation.operators import Provider

PROVIDER = Provider()
REAL = Project.here()
OUTCOMES = [
    pytest.param(PROVIDER[name], before, after, id=f"{name}-{number}")
    for name in PROVIDER
    for number, (before, after) in enumerate(PROVIDER[name].outcomes.items())
]


@pytest.mark.parametrize(("operator_class", "before", "after"), OUTCOMES)
def test_an_operator_yields_its_outcomes_and_no_more(operator_class, before, after):
    operator = operator_class()
    found = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(before)))
    assert [mutate_code(before, operator, number) for number in range(found)] == list(after)


@pytest.mark.parametrize("name", list(PROVIDER))
def test_examples_are_what_cosmic_ray_makes(name):
    examples = PROVIDER[name].examples()
    assert examples
    for example in examples:
        mutated = mutate_code(example.pre_mutation_code, PROVIDER[name](), example.occurrence)
        assert mutated == example.post_mutation_code


@pytest.mark.parametrize(
    "kata", ["05_mlp_forward", "09_batchnorm", "13_silu_out", "14_count_equal"]
)
def test_mutants_of_real_code_are_valid_and_differ_from_it(kata):
    source = (REAL.root / "katas" / kata / "reference.py").read_text(encoding="utf-8")
    nodes = list(ast_nodes(get_ast(source)))
    made = 0
    for name in PROVIDER:
        operator = PROVIDER[name]()
        for occurrence in range(sum(len(list(operator.mutation_positions(n))) for n in nodes)):
            mutated = mutate_code(source, operator, occurrence)
            ast.parse(mutated)
            assert mutated != source, f"{name} {occurrence}"
            made += 1
    assert made >= 20


@pytest.mark.parametrize("name", [name for name in PROVIDER if not PROVIDER[name].in_triton_files])
def test_some_operators_leave_files_with_kernels_alone(name):
    (source, *_) = PROVIDER[name].outcomes

    def places(text):
        operator = PROVIDER[name]()
        return [at for node in ast_nodes(get_ast(text)) for at in operator.mutation_positions(node)]

    assert places(source + "\n")
    assert not places("import triton\n" + source + "\n")


def test_cosmic_ray_finds_the_operators():
    assert {f"dojo/{name}" for name in PROVIDER} <= set(operator_names())


@pytest.mark.parametrize("name", operator_names())
def test_every_operator_is_explained(name):
    explanation = explain(name)
    assert isinstance(explanation.kind, Kind)
    assert explanation.title
    assert explanation.why.count(". ") >= 1
    assert len(set(explanation.hints)) == 3


def test_each_of_our_operators_has_an_explanation_of_its_own():
    assert {f"dojo/{name}" for name in PROVIDER} == {
        name for name in EXPLANATIONS if name.startswith("dojo/")
    }


def test_an_operator_of_a_family_has_its_nearest_explanation():
    assert explain("core/ReplaceBinaryOperator_Mul_Div").title == (
        "Does not multiply what should be multiplied"
    )
    assert (
        explain("core/ReplaceBinaryOperator_LShift_Add")
        is (EXPLANATIONS["core/ReplaceBinaryOperator"])
    )


def test_an_unknown_operator_is_named():
    with pytest.raises(KeyError, match="core/Unheard_Of"):
        explain("core/Unheard_Of")


def test_explanations_need_nothing_but_python():
    code = (
        "import sys; sys.path.insert(0, 'scripts'); "
        "import dojo.kata.explanations; print(*sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REAL.root, capture_output=True, text=True, check=True
    )
    assert not {"torch", "cosmic_ray", "parso", "click"} & set(process.stdout.split())


def test_a_mutant_keeps_comments_and_lines():
    source = "def f(x):\n    # First.\n    x += 1  # more\n\n    # Then.\n    return x - 1\n"
    mutated = mutate_code(source, PROVIDER["PlainAssignment"](), 0)
    assert mutated == source.replace("+=", "=")
