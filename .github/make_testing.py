"""Makes TESTING.md, what the tests of a kata can use, from the docstrings of the package."""

import ast
import inspect
from pathlib import Path

FOLDER = Path(__file__).parent
MODULES = {
    "dojo.testing": "Every kata's tests may import these.",
    "dojo.testrun.bans": (
        "Bans, which `dojo.testing` has as well. A family of operators is named in a line, as in\n"
        "`forbid(*SOFTMAX)`; the others are NORMALISATION, CONVOLUTION, ATTENTION, CROSS_ENTROPY,\n"
        "LINEAR, PRODUCTS, RELU and SILU."
    ),
    "dojo.simulation.ranks": "For katas that train on several ranks; their code imports these too.",
    "dojo.simulation.crashes": "For tests of files that have to outlive a crash.",
    "dojo.kernels": "The tests of kernel katas import these too, before anything imports triton.",
}
HEAD = """\
# What the tests of a kata can use

Made from the docstrings by `.github/make_testing.py`; a test keeps it true. A test also takes the
fixture `impl`, the implementation under test as a module, and may be marked `@pytest.mark.gpu`: it
is skipped then where no GPU is.
"""


def make() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, use in MODULES.items():
        path = FOLDER.parent / "scripts" / Path(*name.split(".")).with_suffix(".py")
        parts.append(f"## {name}\n\n{use}\n")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts += [text for node in tree.body for text in entries(node)]
    return "\n".join(parts)


def entries(node: ast.stmt) -> list[str]:
    """Return the page's entries on a public function, or on a public class and its methods."""
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        return [entry("", node)]
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        methods = [entry(f"{node.name}.", item) for item in node.body if is_public_method(item)]
        return [f"### `{node.name}`\n\n{text_of(node)}\n", *methods]
    return []


def is_public_method(node: ast.stmt) -> bool:
    """Say whether it is a method that a test would call."""
    return isinstance(node, ast.FunctionDef) and not node.name.startswith("_")


def entry(prefix: str, node: ast.stmt) -> str:
    """Return a function's signature and docstring."""
    assert isinstance(node, ast.FunctionDef)
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    returns = ast.unparse(node.returns) if node.returns else "None"
    return f"### `{prefix}{node.name}({arguments}) -> {returns}`\n\n{text_of(node)}\n"


def text_of(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return a docstring, its paragraphs as Markdown; an example keeps its lines."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        "\n".join(f"    {line}" for line in paragraph.splitlines())
        if paragraph.startswith("with ")
        else paragraph
        for paragraph in paragraphs
    )


if __name__ == "__main__":
    (FOLDER / "TESTING.md").write_text(make(), encoding="utf-8")
