"""What each mutation operator stands for, in a person's words; needs nothing but Python."""

from dataclasses import dataclass

from dojo.kata.bug import Kind


@dataclass(frozen=True)
class Explanation:
    """The story of a slip: its kind, a title, what goes wrong, and hints from vague to near."""

    kind: Kind
    title: str
    why: str
    hints: tuple[str, str, str]


def explain(operator_name: str) -> Explanation:
    """Return the explanation of an operator, such as `dojo/ChangeAxis`, or of its family.

    The family of `core/ReplaceBinaryOperator_Mul_Div` is `core/ReplaceBinaryOperator_Mul`, and
    that of the latter `core/ReplaceBinaryOperator`. KeyError if there is none.
    """
    name = operator_name
    while name and name not in EXPLANATIONS:
        name = name.rpartition("_")[0]
    if not name:
        raise KeyError(f"no explanation for the operator {operator_name}")
    return EXPLANATIONS[name]


_BOUNDARY = Explanation(
    Kind.BOUNDARY,
    "Treats the boundary case the other way",
    "The strict comparison and the one that admits equality differ in a single case, so almost "
    "every input gives the right answer. It shows at exact ties: a value equal to the threshold, "
    "the last element of a range, an empty input. Write one test for each comparison with both "
    "sides equal.",
    (
        "Most inputs are right. Which are the special ones?",
        "Try inputs that lie exactly on a limit: ties, zeros, the last valid place.",
        "Look at each comparison and ask what should happen when both sides are equal.",
    ),
)

EXPLANATIONS = {
    # Axes
    "dojo/ChangeAxis": Explanation(
        Kind.AXIS,
        "Works along another axis",
        "Every axis of a tensor is a valid place to reduce or normalise, so nothing is raised, and "
        "where two axes have the same size even the shape is right. It shows as numbers that "
        "depend on the rest of the batch. Test with sizes that all differ, and check what should "
        "be invariant: the rows that sum to one, the channels whose mean is zero.",
        (
            "Does one example's result depend on the other examples beside it?",
            "Print the sums, means or maxima along each axis and see which one has the property "
            "that the brief promises.",
            "Read each axis argument, and say in words what that axis holds.",
        ),
    ),
    "dojo/ChangeKeepdim": Explanation(
        Kind.AXIS,
        "Keeps or drops a reduced axis",
        "A reduced tensor without its axis is aligned from the right when it is broadcast, so a "
        "column of statistics is taken for a row. Square inputs hide that, and non-square ones may "
        "raise far from the cause or grow an axis. Compare shapes before values, and test with "
        "sizes that all differ.",
        (
            "Look at shapes before you look at numbers.",
            "Try inputs with one row, one column and different sizes; does the result keep its "
            "shape?",
            "Follow the shape of each reduction's result to where it is combined with the input.",
        ),
    ),
    "dojo/DropTranspose": Explanation(
        Kind.AXIS,
        "Leaves out a transposition",
        "A matrix and its transpose multiply just as well where the sizes agree, and reshaping an "
        "untransposed tensor mixes its axes without complaint. It shows for non-square matrices, "
        "or as a result whose features are shuffled among heads or positions. Write the shapes "
        "beside every product and test with sizes that all differ.",
        (
            "Write down the shape of every intermediate result.",
            "Try the identity matrix, or an input that is zero but for one element: where does "
            "that element end up?",
            "Check the orientation of what enters each product or reshape.",
        ),
    ),
    "dojo/MoveNewAxis": Explanation(
        Kind.AXIS,
        "Broadcasts along the wrong axis",
        "A vector with a new axis after it varies down the rows, with one before it along the "
        "columns; both broadcast against a square matrix. It shows as values that belong to the "
        "transposed position, or as a shape that does not fit. Name the axes of both operands, and "
        "test with sizes that differ.",
        (
            "Does the result vary along the axis along which it should?",
            "Make the rows different and the columns equal, then the other way round.",
            "Look at where a new axis is put in before something is broadcast.",
        ),
    ),
    # Reductions
    "dojo/ChangeReduction": Explanation(
        Kind.SCALE,
        "Reduces in another way",
        "A sum and a mean differ by a factor that grows with the size, a largest and a least value "
        "by everything; the shape is the same, and a loss still falls. It shows when the size of a "
        "batch changes, or for inputs with an outlier. Compare with a case worked out by hand, for "
        "two different sizes.",
        (
            "Work out a case of three or four numbers by hand.",
            "Does the error grow with the size of the input, or with the spread of its values?",
            "For each reduction say what it is for: total, average, largest, smallest, any or all.",
        ),
    ),
    "dojo/ChangeCorrection": Explanation(
        Kind.SCALE,
        "Divides a variance by another count",
        "The biased variance divides by n and the unbiased one by n - 1, and libraries differ in "
        "which is their default. For large n the two can hardly be told apart, so it shows for "
        "small batches only. Test with two or three values, and state the divisor in the "
        "docstring.",
        (
            "Try very small batches.",
            "The error shrinks as the number of values grows. By what factor is it off?",
            "Look at how the variance counts its values.",
        ),
    ),
    # Masks
    "dojo/ChangeFillValue": Explanation(
        Kind.MASK,
        "Fills masked places with another value",
        "A place that is masked out must hold the neutral element of what comes next: minus "
        "infinity before a softmax or a maximum, zero before a sum. Another value leaks into the "
        "result, though often too little to see. Make the values under the mask huge, or NaN, and "
        "check that nothing changes.",
        (
            "What stands in the places that should not count?",
            "Make every value that counts very negative, or very large, and see what leaks in.",
            "For each fill value, ask what the next operation does with it.",
        ),
    ),
    "dojo/InvertMask": Explanation(
        Kind.MASK,
        "Takes a mask for its opposite",
        "Some interfaces mark what to keep, others what to hide, and both are boolean tensors of "
        "one shape. The result is finite and looks reasonable, with just the wrong half of the "
        "input in it. Name masks after what is true in them, and test with a mask that hides a "
        "single element.",
        (
            "Which elements have an influence on the result, and which should have?",
            "Change one element that should not matter. Does the result change?",
            "Read each mask's name aloud, and ask whether True means keep or hide.",
        ),
    ),
    "dojo/DropMask": Explanation(
        Kind.MASK,
        "Leaves out a mask",
        "Without the mask the places it should hide take part, and the code still runs. It shows "
        "for the inputs that the mask was written for: padding, ignored targets, rows of nothing "
        "but minus infinity. Have a test in which each mask hides something, and one in which it "
        "hides everything.",
        (
            "Ordinary inputs are right. Which special elements or rows does the brief mention?",
            "Change a value that should be ignored and see whether the result changes.",
            "List the cases that the code treats apart, and look for one that it should and does "
            "not.",
        ),
    ),
    "dojo/DropCondition": Explanation(
        Kind.MASK,
        "Forgets one of two conditions",
        "Where two conditions are meant to hold together, one of them alone is right most of the "
        "time. It shows only for inputs on which the two disagree: the right edge but not the "
        "bottom, a match of the first half only. For every compound condition write one test in "
        "which just one of its parts is true.",
        (
            "Find an input that is right and one that is wrong, as alike as possible.",
            "Try sizes that end inside a block along one axis only, or values that meet one "
            "requirement and not the other.",
            "List what must hold at each decision, and compare it with what is checked.",
        ),
    ),
    "dojo/ShrinkBound": Explanation(
        Kind.BOUNDARY,
        "Stops one element short",
        "A bound that is one too small leaves out the last element of each row or block. With "
        "random data the error is a fraction of a percent, and it vanishes under a loose "
        "tolerance. Let the last element be the one that matters: the largest, or the only one "
        "that is not zero.",
        (
            "Do all elements take part? Vary them one by one.",
            "Put a huge value in the last place, then in the first.",
            "Look at the upper bound in each mask.",
        ),
    ),
    # Numerics
    "dojo/MoveEps": Explanation(
        Kind.FORMULA,
        "Adds eps in the wrong place",
        "Inside a root, eps guards against a variance of zero; outside, it does another thing, and "
        "for ordinary variances the two agree to many digits. It shows when the variance is small: "
        "results explode, or a constant row becomes NaN. Test constant rows, and values of the "
        "size of eps.",
        (
            "Try inputs that hardly vary.",
            "What comes out for a constant row, and for values around 1e-3?",
            "Compare the place of eps with the formula in the brief.",
        ),
    ),
    "dojo/DropTerm": Explanation(
        Kind.FORMULA,
        "Leaves out a term or a factor",
        "A missing bias, scale, offset or correction leaves a formula that still runs and often "
        "still trains. It shows only where the missing part is neither zero nor one, which "
        "defaults and initial values often make it. Test with every parameter at a value that is "
        "neutral for nothing.",
        (
            "Compare the code with the formula, part by part.",
            "Give every parameter an odd value such as 0.3. Which one has no influence, or too "
            "much?",
            "One expression has fewer parts than it should. Which quantity of the brief is "
            "missing?",
        ),
    ),
    "dojo/SwapOperands": Explanation(
        Kind.FORMULA,
        "Takes two operands in the wrong order",
        "Differences and quotients care for order, and both orders are equally easy to type. A "
        "swapped difference may be squared away later, a swapped ratio is right where the two are "
        "equal. Test with two operands that differ much and with a sign that matters.",
        (
            "Are the signs and the sizes of the results right?",
            "Double one input and see whether the result doubles or halves.",
            "Check which operand comes first wherever the order matters.",
        ),
    ),
    "dojo/ChangeFunction": Explanation(
        Kind.FORMULA,
        "Applies a related function",
        "Functions of one family have similar names and often agree at zero, at one or for large "
        "inputs: exp and expm1, sqrt and its inverse, a softmax and its logarithm. The code runs "
        "and returns the right shape. Check a few points worked out by hand, away from where the "
        "two meet.",
        (
            "Evaluate the code at a few points that you know by heart: 0, 1, -1, 2.",
            "At which inputs is the result right, and at which is it not?",
            "Read the name of each function that is called, and compare it with the formula.",
        ),
    ),
    "dojo/DropFunction": Explanation(
        Kind.FORMULA,
        "Forgets to apply a function",
        "A missing nonlinearity, absolute value or logarithm changes no shape and raises nothing; "
        "for some inputs, such as positive ones, it makes no difference at all. A model without it "
        "trains, only worse. Test with negative and with large values, and check ranges: "
        "probabilities between 0 and 1, distances not negative.",
        (
            "Is the result in the range in which it must lie?",
            "Compare positive inputs with negative ones, and small with large.",
            "Count the steps of the formula, then those of the code.",
        ),
    ),
    "dojo/ChangeActivation": Explanation(
        Kind.FORMULA,
        "Takes another activation",
        "GELU, SiLU, ELU and leaky ReLU all give about x for large inputs; for very negative ones "
        "GELU and SiLU give about 0, ELU about -1, and leaky ReLU a small multiple of x. A network "
        "with the wrong one trains as well, but pretrained weights give other numbers. Compare one "
        "layer at -10, -1, 0, 1 and 10 with values worked out by hand.",
        (
            "Let one hidden unit take chosen values, and see what the next layer gets of them.",
            "Try units that are slightly negative, very negative and very large.",
            "Compare the function that stands between two layers with the one in the brief.",
        ),
    ),
    "dojo/ActivateFirst": Explanation(
        Kind.FORMULA,
        "Applies an activation before a layer in place of after it",
        "Each order is a real architecture and has the same shapes, so nothing is raised, and both "
        "train. Only the numbers differ: negative inputs are lost before the layer sees them, and "
        "negative outputs stay. Test a layer that changes signs, on an input with both signs.",
        (
            "Which values can be negative: those that enter a layer, or those that leave it?",
            "Let a layer change the sign of its input, or lift it by a large bias.",
            "Read the nested calls from the inside out, and compare their order with the brief's.",
        ),
    ),
    "dojo/ChangeRounding": Explanation(
        Kind.DTYPE,
        "Rounds in another way",
        "Down, up, to zero and to the nearest agree on whole numbers, and in pairs on more than "
        "that. It shows as a bias of half a step, a block too few, or an odd size that is wrong. "
        "Test negative numbers, halves, and sizes that are not multiples of anything.",
        (
            "Try sizes that do not divide evenly, and negative numbers.",
            "Is the result off by at most one? In which direction?",
            "Look at every division that gives a whole number, and every rounding.",
        ),
    ),
    "dojo/ChangeClamp": Explanation(
        Kind.DTYPE,
        "Bounds a value on the wrong side",
        "A clamp without one of its bounds is right as long as no value crosses that side, which "
        "holds for most small tests. The overflow then appears far away, as a wrapped integer or "
        "an infinite score. Test values well beyond both bounds.",
        (
            "Try extreme values.",
            "What happens far below the lower bound, and far above the upper one?",
            "Check both bounds wherever values are limited.",
        ),
    ),
    "dojo/ComplementFraction": Explanation(
        Kind.SCALE,
        "Takes a fraction for what is left of it",
        "Momentum, dropout and smoothing each have two conventions: the share of the new and the "
        "share of the old. At one half they agree, and after many steps an average settles all the "
        "same. Test a single step, with a fraction such as 0.1.",
        (
            "Try the fractions 0 and 1: what should each do?",
            "Which of the two parts gets the larger weight?",
            "Look at where the fraction is used, and at what it is the share of.",
        ),
    ),
    "dojo/ScaleConstant": Explanation(
        Kind.SCALE,
        "Has a constant of another size",
        "A default that is off by a power of ten, or a power with another exponent, is invisible "
        "unless the constant dominates. It shows at tiny variances, or as scores that are too "
        "large or too flat. Test the defaults too, not only with explicit arguments.",
        (
            "Do you call the function with its defaults?",
            "By what factor is the result off, and does the factor depend on a size?",
            "Compare each constant with the brief.",
        ),
    ),
    "dojo/NegateOperand": Explanation(
        Kind.FORMULA,
        "Has the wrong sign for a tensor",
        "A sign is easily lost, or doubled, when a formula is rearranged. Shapes, types and sizes "
        "stay right, and a later square, an absolute value or training may make up for it. Test "
        "with inputs of known sign, one quantity at a time and all others zero or one.",
        (
            "Is the result the right size, with the wrong sign?",
            "Set all parameters but one to zero. Does the one that is left act the right way?",
            "Compare the sign of each operand and argument with the formula.",
        ),
    ),
    "dojo/CompareLoosely": Explanation(
        Kind.DTYPE,
        "Takes for equal what is not",
        "Numbers that were rounded, stripped of their sign, converted to a narrower type or given "
        "a tolerance are equal more often. For small positive whole numbers nothing changes, and "
        "those are what examples are made of. Test negative numbers, fractions, large integers and "
        "direct neighbours.",
        (
            "Small whole numbers are right. Which numbers are not?",
            "Try a number and its negative, 0.5 and 1, then a large integer and its successor.",
            "Look at what is done to the two sides before they are compared.",
        ),
    ),
    "dojo/DropEdge": Explanation(
        Kind.BOUNDARY,
        "Leaves out the first or the last entries",
        "A slice that is right elsewhere, such as one that skips a header or shifts targets by "
        "one, drops a row or a column here. In a large tensor a total is off by little, and if "
        "the entries left out would not count, by nothing. Put what matters in the first place, "
        "then in the last.",
        (
            "Does every entry have an influence on the result?",
            "Put a single entry that counts into each corner in turn.",
            "Check which part of its input each operation sees, and try a tensor of one row.",
        ),
    ),
    # Types
    "dojo/NarrowType": Explanation(
        Kind.DTYPE,
        "Computes in a narrower type",
        "A sum of many products needs more digits, or a larger range, than its inputs have. In a "
        "narrow type it loses its last digits first, then saturates or wraps; short sums look "
        "fine. Test long sums, large values, and compare with a result in float64.",
        (
            "Try long sums and large values.",
            "Does the error grow with the length of the sum, or beyond a certain size?",
            "Follow the type of the numbers from input to output.",
        ),
    ),
    "dojo/DropConversion": Explanation(
        Kind.DTYPE,
        "Leaves out a conversion",
        "Without the conversion the arithmetic runs in the input's own type, or the result comes "
        "back in another type than promised. Values agree for small float32 inputs, which is what "
        "most tests use. Check the type of the result, and feed every type that the contract "
        "allows.",
        (
            "Try every type that the brief allows.",
            "Check the type of the result as well as its values; then compare half precision with "
            "double.",
            "Ask of each intermediate result in which type it is computed.",
        ),
    ),
    # Memory
    "dojo/MakeInPlace": Explanation(
        Kind.ALIASING,
        "Overwrites an input",
        "A method that ends in an underscore returns the right values, and destroys its operand on "
        "the way. The result passes every comparison; the damage shows when the operand is read "
        "again, by the caller or two lines later. Compare each input with a clone taken before.",
        (
            "Is the result all that a function can get wrong?",
            "Call the function twice with the same tensors.",
            "Compare the inputs before and after the call, bit for bit.",
        ),
    ),
    "dojo/LoseInPlace": Explanation(
        Kind.ALIASING,
        "Drops a result that was to be written into a tensor",
        "An assignment to a name binds the name and leaves the tensor that it stood for as it was. "
        "Nothing is raised, and a buffer often holds plausible numbers from before. Fill the "
        "destination with NaN before the call and look at it after.",
        (
            "Look at the tensor that was to be changed, not at what is returned.",
            "Fill the destination with NaN first. What is left of it?",
            "Which statements create a tensor, and which write into one that is there?",
        ),
    ),
    "dojo/WriteToCopy": Explanation(
        Kind.ALIASING,
        "Writes into a copy",
        "A clone is never the caller's memory, and `contiguous` gives the tensor itself only if it "
        "is contiguous already. So the write arrives for plain tensors at most, and is lost for "
        "views. Test with a destination that is a strided view of something larger.",
        (
            "Where did the result go?",
            "Try a destination that is a column, or every second element, of a larger tensor.",
            "Ask of each write whether its target shares memory with the caller's tensor.",
        ),
    ),
    "dojo/UseOutAsScratch": Explanation(
        Kind.ALIASING,
        "Keeps an intermediate result in the output",
        "Using the output as scratch space saves memory, and is right unless the output is also an "
        "input. Then the input is gone before it is read for the last time. Call the function in "
        "place, once for each input that may share memory with the output.",
        (
            "The result is right into a tensor of its own. What else may the output be?",
            "Call it in place.",
            "When is each input read for the last time, and when is the output first written?",
        ),
    ),
    "dojo/SplitInSteps": Explanation(
        Kind.ALIASING,
        "Overwrites one operand before it is read",
        "Copying the first operand into the output and adding the second there works if the output "
        "is the first operand, and fails if it is the second. The usual in-place test covers only "
        "the former. Test aliasing with each operand in turn.",
        (
            "The result is right into a fresh tensor. Try others.",
            "Let the output be each of the inputs in turn.",
            "What does each operand hold at the moment it is read?",
        ),
    ),
    "dojo/AddToOut": Explanation(
        Kind.STATE,
        "Adds to the output what should replace it",
        "An output that was just filled with zeros gives the right result, and only at the first "
        "call. Whoever passes fresh memory, or the same tensor twice, gets the old contents in the "
        "sum. Fill the output with NaN, or a number that no result has, before the call.",
        (
            "Does the result depend on what the output held before?",
            "Call the function twice with the same output.",
            "Which statement reads the output before it has been written?",
        ),
    ),
    "dojo/DropCopy": Explanation(
        Kind.ALIASING,
        "Shares memory where a copy was made",
        "Two names for one memory agree until one of them is written. Then a cache changes under "
        "its owner's hands, or a kernel reads strides that it was not told of. Check that inputs "
        "and caches are unchanged, call twice, and feed views that are not contiguous.",
        (
            "Call the function twice on the same data.",
            "Try inputs that are transposed or sliced, and compare the inputs before and after.",
            "Which results share memory with which inputs?",
        ),
    ),
    "dojo/ChangeAugmented": Explanation(
        Kind.ALIASING,
        "Confuses updating a tensor with making a new one",
        "`x += y` writes into the memory that x names, `x = x + y` makes a new tensor and leaves "
        "the old one alone. The values of x are the same; what differs is everyone else who holds "
        "the old tensor: the caller, a buffer, a view. Test what the function does to its "
        "arguments.",
        (
            "Look at what the function does to the tensors it is given.",
            "Should the caller's tensor change? Does it?",
            "Look at each update, and ask whether others see it.",
        ),
    ),
    # Arguments and names
    "dojo/SwapNeighbours": Explanation(
        Kind.DATA,
        "Swaps two neighbours",
        "Two arguments or elements of one type can be exchanged without complaint: height and "
        "width, left and right, stride and dilation, two axes. Symmetric tests cannot tell. Let no "
        "two parameters of a test have the same value, and pass look-alikes by keyword.",
        (
            "Are any two sizes or parameters of your test equal? Make them differ.",
            "Exchange two parameters in your call: does the result become right?",
            "Compare the order of the values with the order that the receiver expects.",
        ),
    ),
    "dojo/ForgetArgument": Explanation(
        Kind.DATA,
        "Forgets to pass an argument on",
        "An argument that is not passed on takes its default, silently. Callers who use the "
        "default never notice. Test every parameter of a function at a value that is not its "
        "default.",
        (
            "Does every parameter have an effect?",
            "Call the function with each parameter away from its default, one at a time.",
            "Follow each parameter to the place where it is used.",
        ),
    ),
    "dojo/ConfuseName": Explanation(
        Kind.DATA,
        "Takes a name for one that looks like it",
        "Names that differ in a letter, such as two strides, two sizes or two gradients, are "
        "easily completed wrongly. If the two happen to be equal, as in square or contiguous "
        "tests, nothing shows. Give all sizes and strides different values, and read formulas name "
        "by name.",
        (
            "Do any two quantities of your test have the same value? Make them all differ.",
            "Try transposed inputs and sizes that are far apart.",
            "Read each formula name by name; one of them is its neighbour.",
        ),
    ),
    # Indexing
    "dojo/ChangeSlice": Explanation(
        Kind.BOUNDARY,
        "Cuts a slice elsewhere",
        "A slice never raises, however wrong its bounds: it is just a little too long or too "
        "short. It shows at the ends of a sequence, or as an extra element that is counted twice. "
        "Test sequences of one and two elements, and look at the first and last of each result.",
        (
            "Look at the first and the last elements.",
            "Try sequences of one and two elements.",
            "For each slice write down which elements are in it.",
        ),
    ),
    "dojo/ChangeRange": Explanation(
        Kind.BOUNDARY,
        "Begins a loop late or ends it early",
        "A loop that misses its first or last round leaves one element, tap or block out. The rest "
        "is right, so averages hardly move. Test the smallest sizes, and sizes that end inside a "
        "block.",
        (
            "Does every element have an influence on the result?",
            "Put a single one into zeros, at the first place and at the last.",
            "For each loop say which are its first and its last round.",
        ),
    ),
    "dojo/PadOneSide": Explanation(
        Kind.BOUNDARY,
        "Pads one side alone",
        "With one side of the padding missing, the output is shorter, or everything is shifted; "
        "without padding, as by default, nothing is wrong. Test paddings other than zero, "
        "different along each axis, and look at both borders.",
        (
            "Try different paddings.",
            "Compare both borders of the output, and its size.",
            "Check on which sides, and along which axes, zeros are added.",
        ),
    ),
    "dojo/ShiftIndex": Explanation(
        Kind.BOUNDARY,
        "Uses the neighbour of the right element",
        "An index that is off by one is valid nearly everywhere, and at the front it becomes -1, "
        "which Python takes for the last element. Results are shifted by one rather than absent. "
        "Use data in which every element is different, and check its ends.",
        (
            "Let all elements differ, and see where each one goes.",
            "Is something shifted by one place?",
            "Say for each index which element it stands for.",
        ),
    ),
    # Gradients and modes
    "dojo/AddDetach": Explanation(
        Kind.GRADIENT,
        "Cuts off a gradient",
        "A detached value is right in the forward pass and has no gradient in the backward pass. "
        "The loss still falls, through the parameters that are left. Check after one backward pass "
        "that each parameter has a gradient that is not zero, or use gradcheck.",
        (
            "The forward pass is right. What else is asked for?",
            "Run a backward pass and print the gradient of each parameter.",
            "Follow the path from the loss back to each parameter.",
        ),
    ),
    "dojo/DropDetach": Explanation(
        Kind.GRADIENT,
        "Keeps a value in the graph",
        "A value that is stored or returned together with its graph keeps the whole forward pass "
        "alive, and lets a gradient flow where none should. Memory grows from step to step; saving "
        "and copying may fail. Check `requires_grad` of what is stored.",
        (
            "The numbers are right. What else does a tensor carry?",
            "Look at `requires_grad` and `grad_fn` of what is returned.",
            "Which of the results should be data alone?",
        ),
    ),
    "dojo/FreezeParameter": Explanation(
        Kind.STATE,
        "Makes a tensor that is not trained",
        "A plain tensor, or a layer in a plain list, is not seen by `parameters()`, by the "
        "optimiser, by `state_dict()` or by `to(device)`. The forward pass is right, and training "
        "leaves it at its initial value. List the names of a module's parameters in a test.",
        (
            "The first forward pass is right. What happens in training?",
            "Print the names of the module's parameters and whether each wants a gradient.",
            "Look at how the module's attributes are made.",
        ),
    ),
    "dojo/ChangeMode": Explanation(
        Kind.STATE,
        "Ignores the mode of the module",
        "Dropout and batch normalisation behave in two ways, and only one of them is right at a "
        "time. Fixed to training, results are random and statistics drift in evaluation; fixed to "
        "evaluation, nothing is regularised. Test both modes, and call twice.",
        (
            "Compare training with evaluation.",
            "In evaluation call twice: the same result? In training: have the statistics changed?",
            "Follow the mode from the caller to where it matters.",
        ),
    ),
    # Plain Python
    "dojo/ChangeOrder": Explanation(
        Kind.SCHEDULE,
        "Processes things in another order",
        "Ties, priorities and longest-match rules live in the order in which things are taken. In "
        "another order most inputs give the same result, as few have a conflict. Construct an "
        "input on which two candidates compete, and say in the test which one wins and why.",
        (
            "Find an input on which two candidates compete.",
            "Which of them should go first, by the brief? Which does?",
            "Look at what decides the order of processing.",
        ),
    ),
    "dojo/ChangeDefault": Explanation(
        Kind.BOUNDARY,
        "Takes another default for what is missing",
        "The default of a look-up is only seen when the key is absent, which ordinary data may "
        "never do. Then a valid-looking value, such as 0, is mistaken for a real entry. Test with "
        "input that is not in the table.",
        (
            "Known inputs are right. Try unknown ones.",
            "What is returned for something that is not in the table?",
            "Could the value for a missing entry be taken for a real one?",
        ),
    ),
    # Statements
    "dojo/PlainAssignment": Explanation(
        Kind.STATE,
        "Overwrites where it should accumulate",
        "With the accumulation gone, only the last contribution remains. For a single element, "
        "block or row that is the right result. Test with more than one of everything that is "
        "summed over.",
        (
            "Try inputs with one element, then with two.",
            "Do the first elements have an influence, or only the last?",
            "Look at what is built up step by step.",
        ),
    ),
    "dojo/DeleteStatement": Explanation(
        Kind.FORMULA,
        "Forgets a step",
        "A step that was never written leaves nothing to stumble over when the code is read. It "
        "shows for the case which that step was for: an update of a state, an early exit, a second "
        "write. Read the contract sentence by sentence and point at the code that fulfils each.",
        (
            "Go through the brief sentence by sentence, and find the code for each.",
            "Try the special cases: nothing to do, called twice, state before and after.",
            "Something should happen here that does not. What is never updated, checked or "
            "written?",
        ),
    ),
    "dojo/SwapStatements": Explanation(
        Kind.SCHEDULE,
        "Does two steps in the wrong order",
        "Two steps that depend on each other give another result in another order: a running "
        "maximum updated before the old sum is rescaled, a link changed before it is followed. The "
        "first round is often right as old and new agree. Test more than one round, with values "
        "that rise from round to round.",
        (
            "Try data that needs several rounds or blocks.",
            "Is the first round right, and the second not?",
            "Before each use of a variable, ask whether the old or the new value is meant.",
        ),
    ),
    # Triton
    "dojo/DropLoadMask": Explanation(
        Kind.MASK,
        "Reads or writes beyond the edge",
        "Without a mask a block that crosses the edge reads what lies behind it, or writes over "
        "it. The neighbour's memory is usually mapped, so nothing is raised and the result may "
        "even be right. Surround buffers with a guard band, and use sizes that are not multiples "
        "of a block.",
        (
            "Try sizes that are not multiples of a block.",
            "What do the lanes beyond the edge read, and what do they write?",
            "Look at each load and store: is it masked, and what does a masked lane get?",
        ),
    ),
    "dojo/ChangeProgramAxis": Explanation(
        Kind.AXIS,
        "Asks for the wrong axis of the grid",
        "Along an axis on which the grid has one program the index is always 0, so all programs do "
        "the work of the first and the rest of the output is never written. On small inputs there "
        "is only one program anyway. Use inputs that need several programs along each axis.",
        (
            "Try inputs that are larger than one block.",
            "Which parts of the output are never written?",
            "Compare how the grid is launched with how a program finds its place.",
        ),
    ),
    # cosmic-ray's own: arithmetic
    "core/NumberReplacer": Explanation(
        Kind.BOUNDARY,
        "Has a number that is off by one",
        "A literal that is one too large or too small names the next axis, the neighbouring "
        "element or a slightly wrong divisor. The code stays plausible, and near the middle of the "
        "data the difference may be small. Test with tiny inputs whose result you know, and look "
        "at both ends.",
        (
            "Work out the smallest interesting case by hand.",
            "Is the result shifted, scaled, or short of an element?",
            "Check each number in the code: what does it count, and from where?",
        ),
    ),
    "core/ReplaceBinaryOperator": Explanation(
        Kind.FORMULA,
        "Uses another arithmetic operator",
        "Most operators accept the same operands, and for special values such as 0, 1 and 2 "
        "several of them agree: 2 + 2 is 2 * 2. The error grows with the distance from those "
        "values. Test with numbers that no two operators treat alike, such as 3 and 0.7.",
        (
            "Are there inputs for which the result is right? What is special about them?",
            "Double one input. Does the result double, shift, or square?",
            "Compare each operator with the formula.",
        ),
    ),
    "core/ReplaceBinaryOperator_Add": Explanation(
        Kind.FORMULA,
        "Does not add what should be added",
        "The sum has become another operation, which agrees with it only where a term is neutral, "
        "such as a bias that starts at zero. Initial values hide that. Give every term of the sum "
        "a value that is neither 0 nor 1.",
        (
            "Are the inputs of your test special: zeros, ones?",
            "Change one term by a known amount. By how much does the result change?",
            "Check each place where two quantities should be added up.",
        ),
    ),
    "core/ReplaceBinaryOperator_Sub": Explanation(
        Kind.FORMULA,
        "Does not subtract what should be subtracted",
        "The difference has become another operation; with a sign turned, an update climbs instead "
        "of descends, and a centred value is shifted twice. Where the second operand is zero "
        "nothing is wrong. Test with values far from zero, and check the sign.",
        (
            "Do results move in the right direction?",
            "Add a constant to the input; should the result change?",
            "Check each place where something should be taken away.",
        ),
    ),
    "core/ReplaceBinaryOperator_Mul": Explanation(
        Kind.SCALE,
        "Does not multiply what should be multiplied",
        "The product has become another operation. Scales that are 1 by default, such as the "
        "weight of a normalisation, hide it, or make a division look like the product. Test with "
        "factors that are far from 1, some of them negative.",
        (
            "Which of your inputs are 1? Change them.",
            "Double one factor. Does the result double, or halve, or grow by a constant?",
            "Check each place where a quantity is scaled.",
        ),
    ),
    "core/ReplaceBinaryOperator_Div": Explanation(
        Kind.SCALE,
        "Does not divide where it should",
        "The quotient has become another operation: a whole-number division cuts off what is "
        "behind the point, a product scales the wrong way. With a divisor of 1 all is well. Test "
        "with divisors that are neither 1 nor a factor of the dividend.",
        (
            "Does the size of the result depend on the batch, or on a scale, in the right way?",
            "Double the divisor. Does the result halve?",
            "Check each mean, ratio and normalisation.",
        ),
    ),
    "core/ReplaceBinaryOperator_FloorDiv": Explanation(
        Kind.BOUNDARY,
        "Counts whole parts in another way",
        "A whole-number division that has become something else gives a wrong number of blocks, "
        "outputs or elements, or a float where a whole number must be. Sizes that divide evenly "
        "may hide it. Test sizes with a remainder.",
        (
            "Try sizes that do not divide evenly.",
            "Compare the computed sizes and counts with ones that you count by hand.",
            "Check each place where something is cut into equal parts.",
        ),
    ),
    "core/ReplaceBinaryOperator_Mod": Explanation(
        Kind.AXIS,
        "Takes something else for the remainder",
        "The remainder tells the place within a row or block, and whether a size divides evenly. "
        "Replaced by a quotient or a difference it agrees in the first row only. Test with several "
        "rows whose length is no power of two.",
        (
            "Is the first row or block right, and the second wrong?",
            "Write down the place that each element gets, for a small two-dimensional case.",
            "Check each place where an index wraps around.",
        ),
    ),
    "core/ReplaceBinaryOperator_Pow": Explanation(
        Kind.FORMULA,
        "Does not raise to a power where it should",
        "A power has become another operation: 2 squared is also 2 times 2, and 1 to any power is "
        "1. It shows for other values, as a scale that depends on a size in the wrong way. Test "
        "several sizes and values other than 0, 1 and 2.",
        (
            "Which values make all operations agree? Avoid them.",
            "How does the result grow with the size of the input: evenly, as its square, as its "
            "root?",
            "Check each square, root and power of the formula.",
        ),
    ),
    "core/ReplaceBinaryOperator_BitAnd": Explanation(
        Kind.MASK,
        "Combines two masks in another way",
        "With boolean tensors the bitwise operators are and, or and exclusive or. Where one of the "
        "masks is true everywhere, and is the same as the other mask; so it takes a case in which "
        "the two disagree. Test sizes that end inside a block along one axis only.",
        (
            "Find a case in which only one of the conditions holds.",
            "Which elements take part that should not, or the other way round?",
            "Check how masks are combined.",
        ),
    ),
    "core/ReplaceBinaryOperator_BitOr": Explanation(
        Kind.MASK,
        "Combines two sets or masks in another way",
        "A union that has become an intersection or a difference loses elements, and where the two "
        "sides are equal or one is empty that may not show. For dictionaries the later one wins, "
        "which matters if keys clash. Test with sides that overlap in part.",
        (
            "Try two sides that overlap in part, and one that is empty.",
            "Which elements are missing?",
            "Check how collections and masks are joined.",
        ),
    ),
    # cosmic-ray's own: comparisons and conditions
    "core/ReplaceComparisonOperator": Explanation(
        Kind.BOUNDARY,
        "Compares in another way",
        "Another comparison divides the inputs into other cases. Near the boundary, or in the "
        "common case, the answer may still be right, which is why a few examples do not find it. "
        "Test below the limit, at it and above it.",
        (
            "For which inputs is the result right?",
            "For each decision try a value below the limit, at it and above it.",
            "Read each comparison aloud and check it against the brief.",
        ),
    ),
    "core/ReplaceComparisonOperator_Lt_LtE": _BOUNDARY,
    "core/ReplaceComparisonOperator_LtE_Lt": _BOUNDARY,
    "core/ReplaceComparisonOperator_Gt_GtE": _BOUNDARY,
    "core/ReplaceComparisonOperator_GtE_Gt": _BOUNDARY,
    "core/ReplaceComparisonOperator_Is": Explanation(
        Kind.BOUNDARY,
        "Mistakes identity for something else",
        "`is` asks whether two names mean one object. Turned round, what is given is treated as "
        "missing, and what is missing as given; compared by value instead, a tensor answers "
        "element by element. Test each optional argument both given and left out.",
        (
            "Call the function with and without each optional argument.",
            "What happens to a value that is None, and to one that is not?",
            "Check each test for None.",
        ),
    ),
    "core/ReplaceComparisonOperator_Eq": Explanation(
        Kind.MASK,
        "Does not test for equality",
        "An equality that has become an inequality picks other elements or takes the other branch. "
        "With inputs in which everything is equal, or nothing, several comparisons agree. Test "
        "with values below, at and above the one that is looked for.",
        (
            "Try values below, at and above the one that is looked for.",
            "Which elements are picked that should not be?",
            "Check each place where two values should be the same.",
        ),
    ),
    "core/ReplaceComparisonOperator_NotEq": Explanation(
        Kind.MASK,
        "Does not test for difference",
        "A test for difference that has become another comparison lets through only smaller "
        "values, only larger ones, or the wrong ones altogether. Labels and sizes are usually on "
        "one side of the special value, so that it may not show. Test on both sides of it.",
        (
            "What is treated as special? Try values on both sides of it.",
            "Which elements are kept, and which should be?",
            "Check each place where one value is told from all others.",
        ),
    ),
    "core/ReplaceUnaryOperator": Explanation(
        Kind.FORMULA,
        "Uses another sign",
        "A sign or a negation in front of a value is one character, and for zero or a symmetric "
        "input it makes no difference. It shows as a turned gradient, a reversed order, or a mask "
        "that hides the opposite. Test with values that are not symmetric.",
        (
            "Is the result turned round in some sense: sign, order, selection?",
            "Negate an input and see what happens.",
            "Check every minus and every negation.",
        ),
    ),
    "core/ReplaceUnaryOperator_Delete_USub": Explanation(
        Kind.FORMULA,
        "Forgets a minus sign",
        "Without its minus a loss is negative, a heap gives the smallest first, and an index "
        "counts from the front. Sizes and shapes stay the same. Check signs and directions in a "
        "case that you can follow by hand.",
        (
            "Does the result have the right sign, or the right order?",
            "What should be negative here, or counted from the end?",
            "Compare each sign with the formula.",
        ),
    ),
    "core/ReplaceUnaryOperator_USub": Explanation(
        Kind.FORMULA,
        "Turns a minus into something else",
        "Where a negative value was meant there is now another one: the complement of the bits, or "
        "the value itself. An axis or an index then counts from elsewhere. Check signs and "
        "directions in a case that you can follow by hand.",
        (
            "Does the result have the right sign, or the right order?",
            "What should be negative here, or counted from the end?",
            "Compare each sign with the formula.",
        ),
    ),
    "core/ReplaceUnaryOperator_Delete_Not": Explanation(
        Kind.FORMULA,
        "Forgets a negation",
        "Without its `not` a guard lets through what it should stop and stops the ordinary case, "
        "or does nothing where the flag is always the same. Test the guarded case and the ordinary "
        "one.",
        (
            "Which case is treated as the special one?",
            "Try empty inputs, repeated calls and both values of each flag.",
            "Read each condition aloud.",
        ),
    ),
    "core/ReplaceUnaryOperator_Invert": Explanation(
        Kind.MASK,
        "Negates a mask in the wrong way",
        "`~` turns a boolean tensor into its opposite. With another operator in its place the mask "
        "picks other elements, or fails for the type. Test with a mask that is neither all true "
        "nor all false.",
        (
            "Try a mask that hides a single element.",
            "Which elements take part that should not?",
            "Check whether True means keep or hide at each use of a mask.",
        ),
    ),
    "core/ReplaceUnaryOperator_Delete_Invert": Explanation(
        Kind.MASK,
        "Forgets to invert a mask",
        "One interface marks what to keep, the next what to hide, and both take a boolean tensor "
        "of the same shape. Without the inversion just the wrong elements take part, and the "
        "numbers look reasonable. Test with a mask that hides a single element.",
        (
            "Which elements have an influence on the result, and which should have?",
            "Change one element that should not matter. Does the result change?",
            "Does True mean keep or hide? Check at each use.",
        ),
    ),
    "core/ReplaceTrueWithFalse": Explanation(
        Kind.STATE,
        "Turns a flag off",
        "A flag such as `keepdim`, `reverse` or `strict` changes what a call does and rarely "
        "whether it works. The result has another shape, order or state, or an error goes "
        "unnoticed. Check shapes and orders, and test the case for which the flag is there.",
        (
            "Check shape and order, and the state after two calls.",
            "Which options does the code set, and what is each for?",
            "Compare each flag with the documentation of the function.",
        ),
    ),
    "core/ReplaceFalseWithTrue": Explanation(
        Kind.STATE,
        "Turns a flag on",
        "A flag that should be off changes a default or a state: something counts as done before "
        "it was, or is computed in another way. Calls that pass the flag themselves never notice. "
        "Test the defaults and the initial state.",
        (
            "Call everything with its defaults, right after it was made.",
            "What is the state at the start, and what should it be?",
            "Compare each flag and default with the brief.",
        ),
    ),
    "core/ReplaceAndWithOr": Explanation(
        Kind.MASK,
        "Asks for one condition where both must hold",
        "`or` lets through what meets only one of two requirements. Inputs that meet both, or "
        "neither, are treated as before. Write a test for each case in which exactly one of them "
        "holds.",
        (
            "Find a case in which exactly one requirement is met.",
            "What is accepted that should not be?",
            "Check each compound condition, one part at a time.",
        ),
    ),
    "core/ReplaceOrWithAnd": Explanation(
        Kind.MASK,
        "Asks for both conditions where one is enough",
        "`and` stops what meets only one of two requirements, and a default after it replaces what "
        "was given instead of what was missing. Inputs that meet both, or neither, are treated as "
        "before. Write a test for each case in which exactly one of them holds.",
        (
            "Find a case in which exactly one requirement is met.",
            "What is refused, or lost, that should not be?",
            "Check each compound condition, one part at a time.",
        ),
    ),
    "core/AddNot": Explanation(
        Kind.FORMULA,
        "Takes the wrong branch",
        "A condition that is turned round sends the ordinary case down the special path. Where "
        "both paths give similar results, or one is a mere optimisation, it may take a special "
        "input to see it. Have a test for each branch.",
        (
            "Which cases does the code treat apart?",
            "Try the special case and the ordinary one: are they exchanged?",
            "Read each condition aloud: what should happen if it holds?",
        ),
    ),
    # cosmic-ray's own: control flow
    "core/ZeroIterationForLoop": Explanation(
        Kind.BOUNDARY,
        "Never enters a loop",
        "A loop over nothing does nothing, and raises nothing. What it should fill keeps its "
        "initial value, which is right for empty inputs only. Check that each part of the result "
        "differs from its initial value.",
        (
            "Which part of the result looks as if nothing had been done?",
            "Is a loop run as often as it should be? Count.",
            "Follow each loop: over what does it run?",
        ),
    ),
    "core/ReplaceBreakWithContinue": Explanation(
        Kind.SCHEDULE,
        "Goes on where it should stop",
        "A loop that goes on after it has found what it was looking for lets a later find "
        "overwrite the first. With one candidate nothing is wrong. Test with several.",
        (
            "Try inputs with more than one candidate.",
            "Which one wins, the first or the last?",
            "Check when each loop should end.",
        ),
    ),
    "core/ReplaceContinueWithBreak": Explanation(
        Kind.SCHEDULE,
        "Stops where it should go on",
        "A loop that ends at the first item to be skipped never sees those behind it. Where "
        "nothing has to be skipped, or only the last item, nothing is wrong. Put an item to be "
        "skipped first.",
        (
            "Are later items still processed after a special one?",
            "Put the special item first, then last.",
            "Check what happens after an item is skipped.",
        ),
    ),
    "core/RemoveDecorator": Explanation(
        Kind.GRADIENT,
        "Leaves out a decorator",
        "A decorator changes how a function is called or what surrounds it: no gradient, a static "
        "method, a compiled kernel. The body is the same and reads well. Test what the decorator "
        "is for, not the body alone.",
        (
            "The body of each function is right. What else makes a function what it is?",
            "Check gradients and how each function is called.",
            "Look at what stands, or should stand, above each definition.",
        ),
    ),
    "core/ExceptionReplacer": Explanation(
        Kind.FORMULA,
        "Catches another exception",
        "A handler for the wrong exception never runs, and the original error comes through to the "
        "caller. Valid input never raises, so it does not show. Test invalid input, and check the "
        "type and the message of what is raised.",
        (
            "Valid inputs are right. Try invalid ones.",
            "Which exception does the brief promise, and which one comes?",
            "Check what each handler catches.",
        ),
    ),
    "core/VariableReplacer": Explanation(
        Kind.DATA,
        "Uses a constant in place of a variable",
        "A constant that was put in to try something out stays behind, and the variable has no "
        "influence any more. Vary each input alone and check that the result changes.",
        (
            "Does every input matter?",
            "Vary one input at a time, and find one that changes nothing.",
            "Look for a number that stands where a quantity belongs.",
        ),
    ),
    "core/VariableInserter": Explanation(
        Kind.FORMULA,
        "Lets a variable in where it does not belong",
        "A quantity takes part in a formula that should not depend on it. Where it is zero or one "
        "nothing shows. Vary each input alone and compare how the result changes with the formula.",
        (
            "On which inputs should the result depend?",
            "Vary one input at a time, and find one that should change nothing.",
            "Compare the parts of each formula with the brief.",
        ),
    ),
}
