"""kata gpu: what needs a GPU, in one go."""

import subprocess
import sys

import click

from dojo.benchmarks import gpu, references
from dojo.errors import DojoError
from dojo.files import write_section
from dojo.kata import catalogue
from dojo.project import Project
from dojo.testrun.device import has_gpu


@click.command(name="gpu")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option("--readme", is_flag=True, help="Write the table into README.md too.")
@click.pass_obj
def command(project: Project, names: tuple[str, ...], readme: bool) -> None:
    """Run all GPU tests against the references, then time these beside torch's operators.

    \b
    Example: kata gpu softmax
    Exit status: 0 all tests pass, 1 some fail or there is no GPU.
    """
    katas = [kata for kata in catalogue.named(project, names) if kata.needs_triton]
    if not has_gpu():
        raise DojoError(
            "no CUDA device is here; pytest katas/31_triton_softmax runs on a CPU all the same"
        )
    folders = [str(kata.folder) for kata in katas]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "--impl", "reference", *folders],
        cwd=project.root,
        check=False,
    )
    rows = []
    for kata in katas:
        for case in references.kernel_cases(project, kata):
            click.echo(f"timing {kata.name}: {case.label} ...", err=True)
            rows.append((kata.name, gpu.measure(case)))
    text = f"{gpu.machine()}\n\n{gpu.markdown(rows)}"
    click.echo(text)
    if readme:
        write_section(project.readme, "gpu", f"## Kernels on a GPU\n\n{text}\n")
    if tests.returncode != 0:
        raise SystemExit(1)
