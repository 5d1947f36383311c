"""The table of GPU figures; the timing itself needs a GPU, and runs in scripts/gpu.sh alone."""

import pytest
from click.testing import CliRunner

from dojo.benchmarks import gpu
from dojo.cli import main
from dojo.testrun.device import has_gpu


def test_the_table_shows_speed_beside_torch_and_only_the_rates_a_case_has():
    copy = gpu.Figures("a copy", ours=2.0, theirs=1.0, bandwidth=0.914, teraflops=None)
    product = gpu.Figures("a product", ours=1.0, theirs=0.8, bandwidth=None, teraflops=612.3)
    rows = gpu.markdown([("30_silu", copy), ("33_matmul", product)]).splitlines()
    assert rows[2] == "| 30_silu | a copy | 2.000 | 1.000 | 0.50 | 0.91 |  |"
    assert rows[3] == "| 33_matmul | a product | 1.000 | 0.800 | 0.80 |  | 612 |"
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.skipif(has_gpu(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line(project):
    result = CliRunner().invoke(main, ["gpu"], obj=project)
    assert result.exit_code == 1
    assert result.output.startswith("Error: no CUDA device is here")
