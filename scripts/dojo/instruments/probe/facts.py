"""What a probe has seen, in plain data: one process probes, another shows it. Needs no torch."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Source(StrEnum):
    """What was run."""

    RUN = "run"  # the file's own `run()`
    TESTS = "tests"  # the kata's tests: modes, gradients and values are those that they choose


@dataclass
class ModuleFacts:
    """One module: the floating-point tensor of its outputs that is largest, and its calls.

    The statistics are of the last call. Infinite values count in neither mean nor spread nor size.
    """

    name: str
    kind: str  # its class
    is_model: bool = False  # whether it lies in no other
    is_leaf: bool = False  # whether it holds no other
    calls: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    mean: float | None = None  # none of the statistics where there is no such tensor
    spread: float | None = None  # standard deviation
    zeros: float | None = None  # share
    nans: float | None = None  # share
    size: float | None = None  # root mean square
    first_size: float | None = None
    largest_size: float | None = None
    largest_at: int = 0  # step
    infinite_at: int | None = None  # step of the first call that gave plus infinity
    nan_at: int | None = None  # step of the first call that gave NaN from finite inputs
    nan_weights: bool = False  # whether its parameters had NaN by then, or were infinite
    nan_call: int = 0  # that call's place among the calls of all modules
    ungraded: int = 0  # calls with gradients off
    training_ungraded: int = 0  # of these, in training mode
    evaluation_graded: int = 0  # calls with gradients on, in evaluation mode
    statistics_ungraded: int = 0  # calls with gradients off that changed running statistics
    training_in_evaluation: int = 0  # calls in training mode inside a model in evaluation mode
    evaluation_in_training: int = 0  # calls in evaluation mode inside a model in training mode
    model: str = ""  # the class of that model
    drops_ungraded: int = 0  # active dropouts of its own with gradients off
    drops_in_evaluation: int = 0  # active dropouts of its own while it is in evaluation mode


@dataclass
class ParameterFacts:
    """One parameter: its gradient, its updates, and who owns it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    tied: tuple[str, ...] = ()  # other names of the same tensor
    shares_memory: tuple[str, ...] = ()  # names of other parameters over the same memory
    owner: str = ""  # the optimiser that was last seen to own it
    graded: bool = False  # whether its model was called with gradients on
    changed: bool = False  # whether its values ever changed
    gradient: float | None = None  # norm of the last one
    chances: int = 0  # steps of its optimiser; where none owns it, backward passes
    gradients: int = 0  # of these, with a gradient
    zero_gradients: int = 0  # of these, where it was exactly zero
    infinite_gradient_at: int | None = None  # first step at which it was not finite
    weight: float | None = None  # norm, before the last update where there was one
    updates: int = 0
    update: float | None = None  # norm of the last one
    ratio: float | None = None  # of the last update to the weight before it; none from zero
    largest_ratio: float | None = None
    large: int = 0  # updates of more than the weight, where that is not next to nothing
    largest: float | None = None  # the largest ratio of these
    largest_at: int = 0  # step
    from_zero: bool = False  # whether all its values were zero at first


@dataclass
class OptimizerFacts:
    """One optimiser of torch: what it is, its steps, and the learning rates of its groups."""

    name: str
    steps: int
    rates: list[list[float]]  # of each group, at each step


@dataclass
class Facts:
    """All that a probe has seen."""

    source: Source
    steps: int  # what `run()` has yielded, or tests that ran
    modules: list[ModuleFacts]
    parameters: list[ParameterFacts]
    optimizers: list[OptimizerFacts]
    drops_outside: int = 0  # active dropouts in no module, with gradients off
    cut: bool = False  # whether `run()` was stopped, for it has more steps than there was time for
    error: str = ""  # what ended the run

    @property
    def empty(self) -> bool:
        """Say whether there is nothing to show."""
        return not (self.modules or self.parameters or self.optimizers)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "Facts":
        """Return the facts that `to_json` was made from."""
        return cls(
            **{
                **facts,
                "source": Source(facts["source"]),
                "modules": [
                    ModuleFacts(**{**one, "shape": tuple(one["shape"])}) for one in facts["modules"]
                ],
                "parameters": [
                    ParameterFacts(
                        **{
                            **one,
                            **{key: tuple(one[key]) for key in ("shape", "tied", "shares_memory")},
                        }
                    )
                    for one in facts["parameters"]
                ],
                "optimizers": [OptimizerFacts(**one) for one in facts["optimizers"]],
            }
        )
