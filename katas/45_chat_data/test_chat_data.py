import copy
import math
import random
from collections import Counter

import pytest
import torch
from torch import nn

from dojo.testing import assert_matches, assert_text, golden, read_with_draws, unchanged

STEPS = 200  # of a run
IGNORE = -100
NAMES = {"<|bos|>": 256, "<|start|>": 257, "<|header|>": 258, "<|end|>": 259, "<|eot|>": 260}
BOS, END = NAMES["<|bos|>"], NAMES["<|end|>"]


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


def chat_of(*turns):
    """A conversation from texts such as "user: How many?"."""
    parts = [turn.split(": ", 1) for turn in turns]
    return [{"role": role, "content": content} for role, content in parts]


def templates(impl):
    """The two of the brief, and two more that mix what these do."""
    return {
        "CHATML": impl.CHATML,
        "LLAMA": impl.LLAMA,
        "one of its own": impl.Template(
            opening="<|header|>",
            closing=" says: ",
            end="<|eot|>",
            after="<|end|> \n",
            writes_bos=True,
            trims=False,
        ),
        "another of its own": impl.Template(
            opening="[<|start|>",
            closing="<|header|>]",
            end="<|end|>",
            after="",
            writes_bos=False,
            trims=True,
        ),
    }


def examples_of(impl, sizes, low=97):
    """Examples of random tokens, of these sizes, of which about half is learned."""
    examples = []
    for size in sizes:
        ids = [BOS, *torch.randint(low, low + 20, (size - 1,)).tolist()]
        labels = [token if random.random() < 0.5 else IGNORE for token in ids]
        examples.append(impl.Example(ids, [IGNORE, *labels[1:]]))
    return examples


def parts_of(example):
    return list(example.ids), list(example.labels)


def all_of(rows):
    """What stands in each row, in plain lists."""
    return [[parts_of(example) for example in row] for row in rows]


def seen(batch, row):
    """The real tokens of a row of a batch, its segments in order: ids and labels of each."""
    segments = batch.segments[row].tolist()
    found = {}
    for place, segment in enumerate(segments):
        if segment:
            found.setdefault(segment, []).append(place)
    ids, labels = batch.ids[row].tolist(), batch.labels[row].tolist()
    return [([ids[p] for p in ps], [labels[p] for p in ps]) for _, ps in sorted(found.items())]


def logits_of(model, batch):
    return model(batch.ids, batch.positions, batch.segments)


# Symptoms


@pytest.mark.symptom
def test_a_run_goes_as_a_healthy_one_does(log):
    # Of 50 seeds the extremes are in the comments.
    off = []
    last = log[-40:]
    targets = sum(line["targets"] for line in last)
    loss = sum(line["loss"] * line["targets"] for line in last) / targets
    if not 0.44 < loss < 0.8:  # 0.488 and 0.665
        off.append(
            f"over its last 40 steps the loss of a target is {loss:.3f}; as long as nobody knows "
            "a ticket before it is told, it is about 0.6"
        )
    if not log[-1]["exact"] >= 0.78:  # 0.917
        off.append(f"it ends with exact {log[-1]['exact']:.2f}, and should be above 0.9")
    if not 4.5 < log[0]["loss"] < 7.5:  # 5.58 and 6.22
        off.append(f"the first loss is {log[0]['loss']:.2f}, and should be about 5.8")
    mean = sum(line["targets"] for line in log) / len(log)
    if not 65 < mean < 95:  # 75.2 and 83.5
        off.append(f"a batch has {mean:.1f} targets in the mean, and should have about 80")
    fill = sum(line["fill"] for line in log) / len(log)
    if not 0.9 < fill < 0.97:  # 0.919 and 0.947
        off.append(f"{fill:.3f} of a batch is no padding in the mean, and should be about 0.93")
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
def test_twenty_copies_of_a_conversation_give_nothing_away(impl):
    # A question that is always the same, and an answer that is one of twenty at random.
    torch.default_generator.manual_seed(12)
    answers = torch.randint(97, 117, (94,)).tolist()
    rows = [
        [impl.Example([BOS, 63, answer, END], [IGNORE, IGNORE, answer, IGNORE])] * 20
        for answer in answers
    ]
    model = impl.TinyLM()
    generator = torch.Generator().manual_seed(0)
    for _ in impl.train(model, rows[:64], 40, 8, 5e-3, generator):
        pass
    batch = impl.collate(rows[64:])
    with torch.no_grad():
        guesses = logits_of(model, batch)[:, :-1].argmax(dim=-1)
    counted = batch.labels[:, 1:] != IGNORE
    right = (guesses == batch.labels[:, 1:])[counted].float().mean().item()
    assert right < 0.4, (
        f"of answers that are one of twenty at random, a trained model gives {right:.0%} right as "
        "soon as 20 copies of a conversation are in a row; it should be about 5 %"
    )


@pytest.mark.symptom
def test_a_conversation_is_the_same_alone_and_packed(impl):
    examples = examples_of(impl, (17, 30, 9, 12, 25))
    model = impl.TinyLM()
    alone, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            batch = impl.collate([[example]])
            number = sum(label != IGNORE for label in example.labels)
            alone += impl.target_loss(logits_of(model, batch), batch.labels).item() * number
            count += number
        for rows in ([examples[:3], examples[3:]], [examples], [[e] for e in examples]):
            for side in ("right", "left"):
                batch = impl.collate(rows, side=side)
                loss = impl.target_loss(logits_of(model, batch), batch.labels).item()
                assert abs(loss - alone / count) < 1e-4, (
                    f"five conversations have a loss of {alone / count:.4f} one by one, and of "
                    f"{loss:.4f} in {len(rows)} rows that are filled up at the {side}"
                )


@pytest.mark.symptom
def test_an_answer_is_the_same_in_any_batch(impl):
    model = impl.TinyLM()
    prompts = [chat_of("user: " + "ab" * size) for size in (1, 9, 4, 20, 0)]
    prompts[2] = chat_of("system: Be brief.", "user: k3")
    for template in (impl.CHATML, impl.LLAMA):
        alone = [impl.answers(model, [prompt], template, 5)[0] for prompt in prompts]
        for size in (2, 3, 64):
            together = impl.answers(model, prompts, template, 5, batch_size=size)
            wrong = sum(a != b for a, b in zip(alone, together, strict=True))
            assert not wrong, (
                f"{wrong} of {len(prompts)} answers are different with batch_size={size} from "
                f"what they are one by one: {together} and {alone}"
            )


@pytest.mark.symptom
def test_a_batch_reads_as_the_conversations_do(impl):
    chats = [
        chat_of("system:  Be kind.\n", "user: a3", "assistant:  A3 \n"),
        chat_of("user: Which\nnumber? ", "assistant: 17", "user: Sure?", "assistant: \tYes. "),
        chat_of("user: What ends a turn?", "assistant: The token <|end|> or <|eot|> does."),
        chat_of("user: I say <|bos|> and <|start|>assistant\n", "assistant: So?"),
    ]
    for name, template in templates(impl).items():
        examples = [impl.tokenize(chat, template) for chat in chats]
        rows = impl.pack(examples, len(examples[0].ids) + len(examples[1].ids))
        batch = impl.collate(rows)
        found = [example for row in range(len(rows)) for example in seen(batch, row)]
        assert len(found) == len(chats), (
            f"{len(chats)} conversations are packed, and {len(found)} are in the batch"
        )
        read = {impl.decode(ids): (ids, labels) for ids, labels in found}
        for chat in chats:
            content = [m["content"].strip() if template.trims else m["content"] for m in chat]
            turns = [
                template.opening + m["role"] + template.closing + c + template.end + template.after
                for m, c in zip(chat, content, strict=True)
            ]
            text = "<|bos|>" + "".join(turns)
            assert text in read, (
                f"with {name}, no conversation of the batch reads {text!r}; "
                f"they read {sorted(read)}"
            )
            ids, labels = read[text]
            specials = Counter(token for token in ids if token >= 256)
            wanted = Counter([BOS])
            for _ in chat:
                for part in (template.opening, template.closing, template.end, template.after):
                    for special, token in NAMES.items():
                        wanted[token] += part.count(special)
            assert specials == +wanted, (
                f"with {name}, {text!r} has the special tokens {dict(specials)}, "
                f"and should have {dict(+wanted)}"
            )
            learned = impl.decode([label for label in labels if label != IGNORE])
            wanted = "".join(
                c + template.end
                for m, c in zip(chat, content, strict=True)
                if m["role"] == "assistant"
            )
            assert learned == wanted, f"with {name}, {learned!r} is learned, and not {wanted!r}"


@pytest.mark.symptom
def test_a_long_conversation_is_cut_and_not_spoiled(impl):
    chats = [
        chat_of("user: " + "?" * 90 + "b2", "assistant: B2"),
        chat_of("user: c4", "assistant: C4", "user: " + "?" * 90 + "d5", "assistant: D5"),
        chat_of("user: tell", "assistant: " + "A long story. " * 9),
    ]
    whole = [impl.tokenize(chat, impl.CHATML) for chat in chats]
    cut = [impl.truncate(example, 80) for example in whole]
    assert cut[0] is None, (
        "a conversation whose answer is cut away is still in the training data, without anything "
        f"to learn: {impl.decode(cut[0].ids)!r}"
    )
    for example, full in zip(cut[1:], whole[1:], strict=True):
        assert example is not None, f"dropped, though there is a target: {impl.decode(full.ids)!r}"
        assert_text(impl.decode(example.ids), impl.decode(full.ids[:80]), "a conversation, cut")
        learned = [label for label in example.labels if label != IGNORE]
        kept = [label for label in full.labels[:80] if label != IGNORE]
        said = f"{impl.decode(learned)!r} is learned of it, and not {impl.decode(kept)!r}"
        assert learned == kept, said


# Checks: text and tokens


TEXTS = ["", "a", "Mühle 磨坊 🌾", "\x00\x7f\n\r\n\t", "<|bos|", "<|BOS|> <|end|"]


def test_encode_gives_bytes(impl):
    for text in [*TEXTS, *NAMES, "a<|end|>b<|eot|>"]:
        ids = list(impl.encode(text))
        assert ids == list(text.encode()), f"encode({text!r}) is {ids}"
        assert list(impl.encode(text, specials=False)) == ids, f"specials=False, {text!r}"


def test_encode_knows_the_special_tokens_if_it_is_asked(impl):
    for text in TEXTS:
        ids = list(impl.encode(text, specials=True))
        assert ids == list(text.encode()), f"encode({text!r}, specials=True) is {ids}"
    parts = [*NAMES, "x", "|>", "<|", "<|end|", "ü", "\n"]
    for _ in range(20):
        chosen = random.choices(parts, k=6)
        text = "".join(chosen)
        wanted = by_places(text)
        ids = list(impl.encode(text, specials=True))
        assert ids == wanted, f"encode({text!r}, specials=True) is {ids}, not {wanted}"
        assert list(impl.encode(text, True)) == wanted, "specials by position"


def by_places(text):
    """Tokens of a text, read from the left; no name is part of another, or overlaps one."""
    ids, place = [], 0
    while place < len(text):
        name = next((name for name in NAMES if text.startswith(name, place)), None)
        ids += [NAMES[name]] if name else text[place].encode()
        place += len(name) if name else 1
    return ids


def test_decode(impl):
    for text in [*TEXTS, "a<|end|>b", "<|bos|><|eot|>"]:
        for specials in (True, False):
            assert_text(
                impl.decode(impl.encode(text, specials=specials)), text, f"{text!r} there and back"
            )
    assert_text(impl.decode([256, 97, 260, 259]), "<|bos|>a<|eot|><|end|>", "special tokens")
    assert_text(impl.decode([0xC3, END, 0xBC]), "\ufffd<|end|>\ufffd", "half a letter, and half")
    assert_text(impl.decode([0xFF, 65]), "\ufffdA", "an invalid byte")
    assert_text(impl.decode([0]), "\x00", "the token 0")
    assert_text(impl.decode([]), "", "no tokens")


def test_constants(impl):
    assert dict(impl.SPECIALS) == NAMES, f"SPECIALS is {impl.SPECIALS}"
    assert (impl.BOS, impl.PAD, impl.VOCAB_SIZE, impl.IGNORE) == (256, 259, 261, -100)
    pairs = [letter + digit for letter in "abcdefghijkl" for digit in "0123456789"]
    assert list(impl.PAIRS) == pairs
    assert list(impl.HELD_OUT) == pairs[::7]


def pages():
    return golden("chat_data.json")


@pytest.mark.parametrize("name", ["CHATML", "LLAMA"])
def test_text_is_that_of_the_library(impl, name):
    template = getattr(impl, name)
    for chat, page in zip(pages()["chats"], pages()[name], strict=True):
        what = f"{name} of {[m['role'] for m in chat]}"
        assert_text(impl.render(chat, template), page["text"], what)
        assert_text(impl.render(chat, template, True), page["with_prompt"], f"{what} with prompt")
        assert_text(
            impl.render(chat, template, add_generation_prompt=True), page["with_prompt"], what
        )


@pytest.mark.parametrize("name", ["CHATML", "LLAMA"])
def test_tokens_and_labels_are_those_of_the_library(impl, name):
    template = getattr(impl, name)
    bos = [] if name == "LLAMA" else [BOS]  # the library adds none to what a template writes
    for chat, page in zip(pages()["chats"], pages()[name], strict=True):
        what = f"{name} of {chat}"
        ids, labels = parts_of(impl.tokenize(chat, template))
        assert ids == bos + page["ids"], f"tokens of {what}: {ids}, not {bos + page['ids']}"
        mask = [0] * len(bos) + page["mask"]
        wanted = [i if learned else IGNORE for i, learned in zip(ids, mask, strict=True)]
        assert labels == wanted, f"labels of {what}: {labels}, not {wanted}"


def test_tokens_and_labels_by_hand(impl):
    chat = chat_of("user: a", "assistant: bc")
    start, header = [257, *b"user\n"], [257, *b"assistant\n"]
    ids, labels = parts_of(impl.tokenize(chat, impl.CHATML))
    assert ids == [256, *start, 97, 259, 10, *header, 98, 99, 259, 10], f"CHATML: {ids}"
    assert labels == [IGNORE] * 21 + [98, 99, 259, IGNORE], f"CHATML: {labels}"
    ids, labels = parts_of(impl.tokenize(chat, impl.LLAMA))
    start, header = [257, *b"user", 258, 10, 10], [257, *b"assistant", 258, 10, 10]
    assert ids == [256, *start, 97, 260, *header, 98, 99, 260], f"LLAMA: {ids}"
    assert labels == [IGNORE] * 24 + [98, 99, 260], f"LLAMA: {labels}"


def expected_tokens(chat, template, prompt=False):
    """Tokens and labels by the brief, of a template that may be anyone's."""
    ids, labels = [BOS], [IGNORE]

    def add(tokens, learned=False):
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORE] * len(tokens))

    for m in chat:
        learned = m["role"] == "assistant"
        add(by_places(template.opening + m["role"] + template.closing))
        add(list((m["content"].strip() if template.trims else m["content"]).encode()), learned)
        add(by_places(template.end), learned)
        add(by_places(template.after))
    if prompt:
        add(by_places(template.opening + "assistant" + template.closing))
    return ids, labels


CHATS = [
    chat_of("user: a3", "assistant: A3"),
    chat_of("system:  Be kind. ", "user: ü ", "assistant:  ", "user: \n", "assistant: 磨\t"),
    chat_of("assistant: one", "assistant: two", "user: three", "system: four"),
    chat_of("user: no answer"),
    [],
]


def test_any_template(impl):
    for name, template in templates(impl).items():
        for chat in CHATS:
            for prompt in (False, True):
                found = parts_of(impl.tokenize(chat, template, prompt))
                wanted = expected_tokens(chat, template, prompt)
                what = f"of {chat} with {name}, {'with' if prompt else 'without'} prompt"
                assert found[0] == wanted[0], f"tokens {what}: {found[0]}, not {wanted[0]}"
                assert found[1] == wanted[1], f"labels {what}: {found[1]}, not {wanted[1]}"
                text = impl.render(chat, template, add_generation_prompt=prompt)
                written = ("" if template.writes_bos else "<|bos|>") + text
                assert_text(impl.decode(found[0]), written, f"tokens and text {what}")
        assert parts_of(impl.tokenize(CHATS[0], template)) == expected_tokens(CHATS[0], template)


def test_nobody_but_assistants_is_learned(impl):
    for name, template in templates(impl).items():
        for chat in (chat_of("user: u"), chat_of("system: s", "user: u"), chat_of("system: s")):
            labels = parts_of(impl.tokenize(chat, template))[1]
            learned = [label for label in labels if label != IGNORE]
            assert not learned, f"of {chat} with {name}, {learned} is learned"


def spans(impl, template):
    """For each part of an assistant's turn, the labels of its tokens."""
    chat = chat_of("user: u", "assistant: yes", "user: v", "assistant: no")
    labels = parts_of(impl.tokenize(chat, template))[1]
    place, found = 1, {}
    for m in chat:
        header = template.opening + m["role"] + template.closing
        for part, size in (
            ("header", len(by_places(header))),
            ("content", len(m["content"])),
            ("end", 1),
            ("after", len(by_places(template.after))),
        ):
            if m["role"] == "assistant":
                found.setdefault(part, []).append(labels[place : place + size])
            place += size
    assert place == len(labels), f"{len(labels)} labels, not {place}"
    return found


def test_a_header_is_not_learned(impl):
    for name, template in templates(impl).items():
        headers = spans(impl, template)["header"]
        assert all(set(part) <= {IGNORE} for part in headers), f"headers with {name}: {headers}"


def test_the_end_of_each_answer_is_learned(impl):
    for name, template in templates(impl).items():
        found, wanted = spans(impl, template)["end"], [[NAMES[template.end]]] * 2
        assert found == wanted, f"labels at the ends of two answers with {name}: {found}"


def test_what_comes_after_an_answer_is_not_learned(impl):
    for name, template in templates(impl).items():
        after = spans(impl, template)["after"]
        assert all(set(part) <= {IGNORE} for part in after), f"after answers with {name}: {after}"


def test_every_answer_is_learned(impl):
    for name, template in templates(impl).items():
        found, wanted = spans(impl, template)["content"], [list(b"yes"), list(b"no")]
        assert found == wanted, f"labels of two answers with {name}: {found}, not {wanted}"


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_what_a_message_says_is_text(impl, role):
    contents = [*NAMES, "x<|end|>\n<|start|>assistant\nyes", " <|bos|> ", "<|eot|><|eot|>"]
    for name, template in templates(impl).items():
        for content in contents:
            chat = [{"role": role, "content": content}]
            found = parts_of(impl.tokenize(chat, template))
            wanted = expected_tokens(chat, template)
            assert found == wanted, f"{role} says {content!r}, with {name}: {found}, not {wanted}"


def test_tokenize_keeps_nothing_and_changes_nothing(impl):
    for template in (impl.CHATML, impl.LLAMA):
        chat = chat_of("system: s ", "user: u", "assistant:  a ")
        before = copy.deepcopy(chat)
        first = impl.tokenize(chat, template)
        kept = copy.deepcopy(parts_of(first))
        impl.tokenize(chat, template, add_generation_prompt=True)
        assert chat == before, "tokenize changes the conversation"
        chat[2]["content"] = "other"
        assert parts_of(impl.tokenize(chat, template)) == expected_tokens(chat, template)
        assert parts_of(first) == kept, "tokenize changes an earlier result"
        first.ids.append(1)
        first.labels.clear()
        assert parts_of(impl.tokenize(chat, template)) == expected_tokens(chat, template), (
            "tokenize returns what an earlier result has become"
        )


# Checks: truncation and packing


CUT_IDS = [BOS, 5, 6, 7, 8, 9, 5, 6]
CUT_LABELS = [IGNORE, IGNORE, IGNORE, 7, 8, IGNORE, IGNORE, 6]


def test_truncate_keeps_the_first_tokens(impl):
    example = impl.Example(list(CUT_IDS), list(CUT_LABELS))
    for length in range(4, 11):
        cut = impl.truncate(example, length)
        assert cut is not None, f"of the first {length} tokens some are learned"
        wanted = (CUT_IDS[:length], CUT_LABELS[:length])
        assert parts_of(cut) == wanted, f"max_length {length}: {parts_of(cut)}, not {wanted}"
        assert parts_of(example) == (CUT_IDS, CUT_LABELS), "truncate changes the example"


def test_an_example_without_a_target_is_dropped(impl):
    example = impl.Example(list(CUT_IDS), list(CUT_LABELS))
    for length in (1, 2, 3):
        cut = impl.truncate(example, length)
        assert cut is None, f"nothing is learned of the first {length} tokens, and it is {cut}"
    assert impl.truncate(impl.Example([BOS, 0, 1], [IGNORE] * 3), 3) is None
    assert impl.truncate(impl.Example([BOS], [IGNORE]), 5) is None


def test_a_cut_adds_no_token(impl):
    size = 12
    ids = [BOS, *range(100, 100 + size)]
    example = impl.Example(ids, [IGNORE, *ids[1:]])
    for length in range(2, size):
        cut = impl.truncate(example, length)
        added = set(cut.ids) - set(ids)
        assert not added, f"the first {length} tokens have {added}, which was not there"
        learned = {label for label in cut.labels if label != IGNORE} - set(ids)
        assert not learned, f"of the first {length} tokens {learned} is learned"


def test_every_token_may_be_the_one_that_is_learned(impl):
    for token in (0, 1, 255, END, 260, BOS):
        example = impl.Example([BOS, 10, token, 11], [IGNORE, IGNORE, token, IGNORE])
        cut = impl.truncate(example, 3)
        assert cut is not None, f"token {token} is learned, and the example is dropped"
        assert parts_of(cut) == ([BOS, 10, token], [IGNORE, IGNORE, token])


def first_fit(sizes, capacity):
    rows = []
    for number, size in enumerate(sizes):
        for row in rows:
            if sum(sizes[i] for i in row) + size <= capacity:
                row.append(number)
                break
        else:
            rows.append([number])
    return rows


def test_pack(impl):
    cases = [([3, 5, 2, 8, 4, 1, 3, 7], 10), ([5, 5, 5], 5), ([2, 2, 2, 2], 8), ([1], 1), ([4], 9)]
    cases += [(random.choices(range(1, 14), k=40), 13), ([6, 3, 6, 3, 2, 1], 9)]
    for sizes, capacity in cases:
        examples = examples_of(impl, sizes)
        before = [parts_of(example) for example in examples]
        wanted = [[before[i] for i in row] for row in first_fit(sizes, capacity)]
        rows = impl.pack(examples, capacity)
        lengths = [[len(example.ids) for example in row] for row in rows]
        assert all_of(rows) == wanted, (
            f"examples of {sizes} tokens in rows of {capacity} lie as {lengths}, and should as "
            f"{[[sizes[i] for i in row] for row in first_fit(sizes, capacity)]}"
        )
        assert [parts_of(example) for example in examples] == before, "pack changes the examples"
        assert all_of(impl.pack(examples, capacity)) == wanted, "packed again it is different"
    assert list(impl.pack([], 5)) == [], "of no examples there are no rows"


# Checks: batches


def test_collate_by_hand(impl):
    i = IGNORE
    rows = [
        [impl.Example([BOS, 5, 259, 6], [i, i, 259, 6]), impl.Example([BOS, 0], [i, 0])],
        [impl.Example([BOS, 7, 8], [i, 7, i])],
    ]
    for pad in (259, 0, 7, 256):
        right = {
            "ids": [[256, 5, 259, 6, 256, 0], [256, 7, 8, pad, pad, pad]],
            "labels": [[i, i, 259, 6, i, 0], [i, 7, i, i, i, i]],
            "positions": [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]],
            "segments": [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]],
        }
        left = {
            "ids": [[256, 5, 259, 6, 256, 0], [pad, pad, pad, 256, 7, 8]],
            "labels": [[i, i, 259, 6, i, 0], [i, i, i, i, 7, i]],
            "positions": [[0, 1, 2, 3, 0, 1], [0, 0, 0, 0, 1, 2]],
            "segments": [[1, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]],
        }
        for side, wanted in (("right", right), ("left", left)):
            batch = impl.collate(rows, pad_id=pad, side=side)
            for name, values in wanted.items():
                what = f"{name}, filled up with {pad} at the {side}"
                assert_matches(getattr(batch, name), torch.tensor(values), what)
        if pad == 259:
            right_too = impl.collate(rows)
            for name, values in right.items():
                assert_matches(getattr(right_too, name), torch.tensor(values), f"{name} by default")


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_any_rows(impl, side):
    for shapes in ([[3, 4, 2], [1], [5, 5]], [[7]], [[2], [2]], [[1, 1, 1, 1], [6, 2]], [[1]]):
        rows = [examples_of(impl, sizes) for sizes in shapes]
        before = copy.deepcopy(all_of(rows))
        batch = impl.collate(rows, 97, side)
        width = max(map(sum, shapes))
        assert batch.ids.shape == (len(rows), width), f"rows of {shapes} make {batch.ids.shape}"
        for number, (row, sizes) in enumerate(zip(before, shapes, strict=True)):
            assert seen(batch, number) == row, f"row {number} of {shapes}: {seen(batch, number)}"
            places = [place for size in sizes for place in range(size)]
            gap = [0] * (width - len(places))
            wanted = places + gap if side == "right" else gap + places
            assert batch.positions[number].tolist() == wanted, f"positions of row {number}"
            padding = batch.segments[number] == 0
            assert set(batch.ids[number][padding].tolist()) <= {97}, "what it is filled up with"
            assert set(batch.labels[number][padding].tolist()) <= {IGNORE}, "labels of padding"
        assert all_of(rows) == before, "collate changes the rows"
        again = impl.collate(rows, 97, side)
        for name in ("ids", "labels", "positions", "segments"):
            mine, other = getattr(batch, name), getattr(again, name)
            assert mine.dtype == torch.int64, f"{name} is {mine.dtype}"
            kept = other.clone()
            mine.fill_(3)
            assert_matches(other, kept, f"{name} of another batch")
        assert all_of(rows) == before, "a batch shares memory with its rows"


def test_attention_mask(impl):
    cases = [
        [[1, 1, 2, 2, 2, 0, 0], [1, 2, 3, 3, 4, 4, 4]],
        [[0, 0, 0, 1, 1, 2], [1, 1, 1, 1, 1, 1], [0, 1, 1, 2, 3, 3]],
        [[1]],
        [[0, 1]],
        [[1, 1, 1, 1]],
    ]
    for rows in cases:
        width = len(rows[0])
        wanted = [
            [[row[q] == row[k] and k <= q for k in range(width)] for q in range(width)]
            for row in rows
        ]
        segments = torch.tensor(rows)
        with unchanged(segments=segments):
            mask = impl.attention_mask(segments)
        assert_matches(mask, torch.tensor(wanted), f"the mask of segments {rows}")


# Checks: the model and the loss


def test_logits_of_packed_conversations_are_those_of_each_alone(impl):
    for options in ({}, {"dim": 24, "heads": 3, "max_positions": 31}):
        model = impl.TinyLM(**options)
        examples = examples_of(impl, (11, 31, 6, 1, 20))
        with torch.no_grad():
            alone = [logits_of(model, impl.collate([[e]]))[0] for e in examples]
            for rows in ([[2, 0], [1], [3, 4]], [[0, 1, 2, 3, 4]], [[4], [2, 3], [0], [1]]):
                for side in ("right", "left"):
                    packed = [[examples[i] for i in row] for row in rows]
                    for pad in (END, 98):
                        batch = impl.collate(packed, pad, side)
                        logits = logits_of(model, batch)
                        assert logits.shape == (*batch.ids.shape, 261), f"{logits.shape}"
                        for number, row in enumerate(rows):
                            for segment, i in enumerate(row, 1):
                                assert_matches(
                                    logits[number][batch.segments[number] == segment],
                                    alone[i],
                                    f"logits of example {segment} of {len(row)} in its row, which "
                                    f"is filled up with {pad} at the {side}, and alone",
                                    rtol=1e-4,
                                    atol=1e-4,
                                )


def test_logits_depend_on_what_was_before_and_on_nothing_else(impl):
    model = impl.TinyLM()
    ids = torch.randint(97, 120, (2, 9))
    positions = torch.arange(9).expand(2, 9).clone()
    segments = torch.ones(2, 9, dtype=torch.long)
    with torch.no_grad():
        before = model(ids, positions, segments)
        for place in range(9):
            other = ids.clone()
            other[1, place] = 33
            moved = (model(other, positions, segments) - before).abs().amax(dim=-1)
            assert moved[0].max() < 1e-5, "a token changes another row's logits"
            assert place == 0 or moved[1, :place].max() < 1e-5, (
                f"token {place} changes the logits of a place before it"
            )
            assert moved[1, place:].min() > 1e-6, (
                f"token {place} does not change all logits from its place on: {moved[1].tolist()}"
            )
        later = model(ids, positions + 3, segments)
        assert (later - before).abs().amax(dim=-1).min() > 1e-6, "positions do not count"


def test_the_model_draws_nothing_and_is_one_in_both_modes(impl):
    model = impl.TinyLM(dim=16, heads=2, max_positions=12)
    batch = impl.collate([examples_of(impl, (5, 7)), examples_of(impl, (4,))])
    with torch.no_grad(), unchanged(**batch_of(batch)):
        torch.default_generator.manual_seed(3)
        state = torch.get_rng_state()
        model.train()
        one = logits_of(model, batch)
        model.eval()
        other = logits_of(model, batch)
        assert torch.equal(torch.get_rng_state(), state), "the model draws random numbers"
    assert_matches(other, one, "logits in evaluation mode and in training", rtol=1e-4, atol=1e-5)
    # All rows are padded, and so is a place with nothing but padding before it.
    for side in ("left", "right"):
        batch = impl.collate([examples_of(impl, (3,)), examples_of(impl, (9,))], side=side)
        model.zero_grad()
        impl.target_loss(logits_of(model, batch), batch.labels).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, f"{name} has no gradient"
            assert p.grad.isfinite().all(), f"{name} has a gradient that is not finite"


def batch_of(batch):
    return {name: getattr(batch, name) for name in ("ids", "labels", "positions", "segments")}


def loss_by_hand(logits, labels):
    """The mean loss in float64 and its gradient for the logits, from the definition."""
    logits = logits.double()
    total, count = 0.0, 0
    grad = torch.zeros_like(logits)
    for b in range(logits.shape[0]):
        for t in range(1, logits.shape[1]):
            label = int(labels[b, t])
            if label != IGNORE:
                p = (logits[b, t - 1] - logits[b, t - 1].max()).exp()
                p /= p.sum()
                total -= math.log(p[label])
                grad[b, t - 1] = p
                grad[b, t - 1, label] -= 1
                count += 1
    return total / max(count, 1), grad / max(count, 1)


def random_labels(batch, width, classes, share=0.4):
    labels = torch.randint(classes, (batch, width))
    labels[torch.rand(batch, width) > share] = IGNORE
    return labels


def test_the_loss_is_the_mean_over_all_targets(impl):
    for shape in ((3, 8, 11), (1, 2, 5), (4, 5, 261), (2, 1, 3)):
        labels = random_labels(*shape)
        labels[0, -1] = 0
        labels[-1] = IGNORE if shape[0] > 1 else labels[-1]  # rows have different numbers of them
        logits = (3 * torch.randn(shape)).requires_grad_()
        wanted, grad = loss_by_hand(logits.detach(), labels)
        with unchanged(labels=labels, logits=logits):
            loss = impl.target_loss(logits, labels)
        assert_matches(
            loss.detach(), torch.tensor(wanted).float(), f"the loss of {shape}", rtol=1e-4
        )
        loss.backward()
        assert_matches(logits.grad, grad.float(), f"its gradient, {shape}", rtol=1e-4, atol=1e-6)


def test_a_label_belongs_to_the_place_before_it(impl):
    logits = torch.zeros(1, 4, 6)
    logits[0, 1, 5] = 50
    logits[0, 2, 3] = 50
    for labels, wanted in (
        ([IGNORE, IGNORE, 5, 3], 0.0),
        ([4, IGNORE, 5, IGNORE], 0.0),  # nothing is before the first place
        ([IGNORE, 2, IGNORE, IGNORE], math.log(6)),
        ([IGNORE, 2, 5, 3], math.log(6) / 3),
    ):
        loss = float(impl.target_loss(logits, torch.tensor([labels])))
        assert math.isclose(loss, wanted, rel_tol=1e-4, abs_tol=1e-6), (
            f"a model that is sure of 5 at place 2 and of 3 at place 3, and of nothing else, has "
            f"the loss {loss:.4f} with labels {labels}, and should have {wanted:.4f}"
        )


def test_ignored_labels_are_ignored(impl):
    labels = random_labels(2, 9, 7)
    labels[:, 3] = 2
    logits = torch.randn(2, 9, 7)
    before = impl.target_loss(logits, labels)
    ignored = torch.cat([labels[:, 1:] == IGNORE, torch.ones(2, 1, dtype=torch.bool)], dim=1)
    other = torch.where(ignored[..., None], torch.randn(2, 9, 7), logits)
    assert_matches(impl.target_loss(other, labels), before, "the loss with other logits elsewhere")


def test_a_batch_without_targets_has_no_loss(impl):
    for labels in ([[IGNORE] * 4], [[3, IGNORE, IGNORE, IGNORE]], [[2]]):
        logits = torch.randn(1, len(labels[0]), 5, requires_grad=True)
        loss = impl.target_loss(logits, torch.tensor(labels))
        assert loss.item() == 0, f"the loss of labels {labels} is {loss.item()}"
        if loss.requires_grad:
            loss.backward()
            grad = logits.grad if logits.grad is not None else torch.zeros(())
            assert not grad.count_nonzero(), f"the gradient with labels {labels}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_halves_is_worked_out_in_single_precision(impl, dtype):
    logits = (4 * torch.randn(5, 60, 30)).to(dtype)
    labels = random_labels(5, 60, 30, 0.9)
    wanted = torch.tensor(loss_by_hand(logits, labels)[0]).float()
    assert_matches(
        impl.target_loss(logits, labels), wanted, f"the loss of {dtype} logits", rtol=1e-4
    )


# Checks: training


class Reader(nn.Module):
    """A small model of the same interface, which notes what it is given."""

    def __init__(self, dim=6):
        super().__init__()
        self.tokens = nn.Embedding(261, dim)
        self.head = nn.Linear(dim, 261)
        self.calls = []

    def forward(self, ids, positions, segments):
        self.calls.append((ids.clone(), positions.clone(), segments.clone(), self.training))
        same = (segments[:, :, None] == segments[:, None, :]).tril().float()
        x = self.tokens(ids) * (positions[..., None] + 1).float().rsqrt()
        return self.head((same @ x) / same.sum(-1, keepdim=True))


def read_rows(call):
    """The rows of a call as lists of examples' tokens."""
    ids, _, segments, _ = call
    rows = []
    for tokens, numbers in zip(ids.tolist(), segments.tolist(), strict=True):
        row = {}
        for token, number in zip(tokens, numbers, strict=True):
            if number:
                row.setdefault(number, []).append(token)
        rows.append(tuple(tuple(part) for _, part in sorted(row.items())))
    return rows


def some_rows(impl, count):
    """Rows that are all different, of one to three examples each."""
    rows = []
    for number in range(count):
        row = examples_of(impl, random.choices(range(3, 9), k=1 + number % 3))
        row[0].ids[1] = number
        row[0].labels[2] = row[0].ids[2]
        rows.append(row)
    return rows


def trained(impl, model, rows, steps, batch_size, lr=0.01, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return impl.train(model, rows, steps, batch_size, lr, generator)


def test_an_epoch_has_every_row_once_in_a_new_order(impl):
    for count, size in ((7, 3), (6, 2), (4, 9), (1, 1), (5, 5)):
        rows = some_rows(impl, count)
        names = {tuple(tuple(example.ids) for example in row) for row in rows}
        epoch = math.ceil(count / size)
        model = Reader()
        list(trained(impl, model, rows, 3 * epoch, size))
        assert len(model.calls) == 3 * epoch, f"{len(model.calls)} forward passes"
        orders = []
        for start in range(0, 3 * epoch, epoch):
            batches = [read_rows(call) for call in model.calls[start : start + epoch]]
            sizes = [len(batch) for batch in batches]
            wanted = [size] * (count // size) + [count % size] * (count % size > 0)
            assert sizes == wanted, f"{count} rows in batches of {size}: {sizes}"
            orders.append([row for batch in batches for row in batch])
            assert set(orders[-1]) == names, f"an epoch of {count} rows has not each of them once"
        if count > 4:
            assert not orders[0] == orders[1] == orders[2], "every epoch has the same order"


def test_the_generator_draws_the_order(impl):
    rows = some_rows(impl, 8)

    def order(seed):
        model = Reader()
        torch.default_generator.manual_seed(seed + 50)
        state = torch.get_rng_state()
        list(trained(impl, model, rows, 8, 1, seed=seed))
        assert torch.equal(torch.get_rng_state(), state), "training draws globally"
        return [read_rows(call)[0] for call in model.calls]

    assert order(1) == order(1), "the same generator gives another order"
    assert any(order(1) != order(seed) for seed in (2, 3, 4)), "the generator does not count"
    firsts = {order(seed)[0] for seed in range(24)}
    assert len(firsts) > 4, f"only {len(firsts)} of 8 rows ever come first"


def test_an_epoch_draws_nothing_but_its_order(impl):
    rows = some_rows(impl, 4)

    def drawn(steps):
        generator = torch.Generator().manual_seed(5)
        list(impl.train(Reader(), rows, steps, 2, 0.01, generator))
        return generator.get_state()

    # Its order is drawn before the first step, and the next one before the first of the next.
    assert torch.equal(drawn(2), drawn(1)), "something is drawn within an epoch, or at its end"
    assert not torch.equal(drawn(3), drawn(2)), "nothing is drawn for a second epoch"


def test_steps_are_those_of_adam(impl):
    rows = some_rows(impl, 5)
    model = Reader()
    with torch.no_grad():
        for p in model.parameters():
            p.grad = torch.randn_like(p)  # left over from before
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.grad = None
    adam = torch.optim.Adam(twin.parameters(), lr=0.02)
    by_tokens = {tuple(tuple(e.ids) for e in row): row for row in rows}
    for line in trained(impl, model, rows, 7, 2, lr=0.02):
        chosen = [by_tokens[row] for row in read_rows(model.calls[-1])]
        total, count, width = 0, 0, max(sum(len(e.ids) for e in row) for row in chosen)
        for example in (e for row in chosen for e in row):
            ids = torch.tensor([list(example.ids)])
            logits = twin(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids))
            logp = logits[0].log_softmax(-1)
            for place, label in enumerate(example.labels):
                if label != IGNORE:
                    total = total - logp[place - 1, label]
                    count += 1
        adam.zero_grad()
        (total / count).backward()
        adam.step()
        loss, wanted = line["loss"], total.item() / count
        assert math.isclose(loss, wanted, rel_tol=1e-3), f"a loss of {loss:.5f}, not {wanted:.5f}"
        assert line["targets"] == count, f"{line['targets']} targets, not {count}"
        real = sum(len(e.ids) for row in chosen for e in row) / (len(chosen) * width)
        assert math.isclose(line["fill"], real, rel_tol=1e-4), f"fill {line['fill']}, not {real}"
        for name, p in model.named_parameters():
            wanted = twin.get_parameter(name).detach()
            what = f"{name} after step {len(model.calls)}"
            assert_matches(p.detach(), wanted, what, rtol=1e-3, atol=2e-4)
            p.grad = None if p.grad is None else p.grad + 3  # what a reader leaves there
    assert len(model.calls) == 7, f"{len(model.calls)} forward passes in 7 steps"


def test_training_is_in_training_mode_and_leaves_its_rows_alone(impl):
    rows = some_rows(impl, 4)
    before = copy.deepcopy(all_of(rows))
    model = Reader().eval()
    for line in trained(impl, model, rows, 5, 3):
        assert set(line) == {"loss", "targets", "fill"}, f"a line has {sorted(line)}"
        assert all(isinstance(value, float) for value in line.values()), f"no float in {line}"
        model.eval()
    modes = [call[-1] for call in model.calls]
    assert modes == [True] * 5, f"training mode in five steps: {modes}"
    assert all_of(rows) == before, "training changes its rows"


# Checks: answers


class Script(nn.Module):
    """Says a next token that depends on all real tokens before it and their positions."""

    def __init__(self, ends=7, width=261):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.inner = nn.Dropout(0.5)
        self.ends, self.width, self.modes = ends, width, []

    def forward(self, ids, positions, segments):
        self.modes.append((self.training, self.inner.training))
        same = (segments[:, :, None] == segments[:, None, :]).tril()
        sums = (same * ((ids + 1) * (3 * positions + 2))[:, None, :]).sum(-1)
        tokens = torch.tensor([[self.said(int(s)) for s in row] for row in sums])
        return nn.functional.one_hot(tokens, self.width).float() * self.weight

    def said(self, total):
        if total % self.ends == 0:
            return (259, 260)[total // self.ends % 2]
        return (total // 3) % 256 if total % 5 else 256 + total % 3

    def answer(self, ids, end, max_tokens):
        """The answer to a prompt's tokens, one token at a time."""
        ids, new = list(ids), []
        for _ in range(max_tokens):
            token = self.said(sum((i + 1) * (3 * p + 2) for p, i in enumerate(ids)))
            if token == end:
                break
            new.append(token)
            ids.append(token)
        return b"".join(
            next(name.encode() for name in NAMES if NAMES[name] == i) if i > 255 else bytes([i])
            for i in new
        ).decode(errors="replace")


PROMPTS = [
    chat_of("user: a3"),
    chat_of("system: Be brief. ", "user:  And so on, and on?"),
    chat_of("user: x", "assistant: y", "user: <|end|>"),
    chat_of("user: "),
    chat_of("user: ü磨", "assistant: z"),
    chat_of("system: s"),
    chat_of("user: a4"),
]


def test_the_first_token_of_an_answer(impl):
    for name, template in templates(impl).items():
        model = Script(11)
        wanted = [
            model.answer(expected_tokens(chat, template, True)[0], NAMES[template.end], 1)
            for chat in PROMPTS
        ]
        found = list(impl.answers(model, PROMPTS, template, 1))
        assert found == wanted, f"with {name} answers begin with {found}, and not with {wanted}"


def test_an_answer_is_what_the_model_says_token_by_token(impl):
    for name, template in templates(impl).items():
        end = NAMES[template.end]
        for ends in (3, 7, 40):
            model = Script(ends)
            for max_tokens, size in ((1, 2), (6, 1), (6, 3), (9, 7), (9, 64)):
                wanted = [
                    model.answer(expected_tokens(chat, template, True)[0], end, max_tokens)
                    for chat in PROMPTS
                ]
                found = impl.answers(model, PROMPTS, template, max_tokens, batch_size=size)
                assert list(found) == wanted, (
                    f"with {name}, max_tokens={max_tokens} and batch_size={size} the answers are "
                    f"{list(found)}, and should be {wanted}"
                )


def test_answers_leave_prompts_and_weights_alone(impl):
    prompts = copy.deepcopy(PROMPTS)
    model = Script().train()
    model.weight.grad = torch.tensor(2.5)
    first = impl.answers(model, prompts, impl.CHATML, 4)
    assert len(first) == len(PROMPTS)
    assert torch.is_grad_enabled(), "autograd is off afterwards"
    assert prompts == PROMPTS, "answers changes the prompts"
    assert model.weight.grad == 2.5, "answers changes gradients"
    assert model.weight == 1, "answers changes weights"
    assert set(model.modes) == {(False, False)}, "the model answers in training mode"
    model.eval()
    model.inner.train()
    model.modes.clear()
    impl.answers(model, PROMPTS, impl.CHATML, 2)
    assert set(model.modes) == {(False, False)}, "a part of the model answers in training mode"
    prompts[0][0]["content"] = "something else"
    again = impl.answers(model, prompts[:1], impl.CHATML, 4)
    wanted = model.answer(expected_tokens(prompts[0], impl.CHATML, True)[0], END, 4)
    assert list(again) == [wanted], "the answer to a prompt that was changed in place"
    assert list(impl.answers(model, [], impl.CHATML, 4)) == [], "no prompts, no answers"


def test_answers_record_no_graph(impl):
    class Watched(Script):
        def forward(self, *args):
            out = super().forward(*args)
            self.graphs = getattr(self, "graphs", 0) + out.requires_grad
            return out

    model = Watched()
    impl.answers(model, PROMPTS, impl.LLAMA, 3)
    assert model.graphs == 0, f"{model.graphs} forward passes were recorded for a backward pass"


# Checks: the run


def test_what_a_run_learns_from(impl):
    torch.default_generator.manual_seed(1)
    state = torch.get_rng_state()
    days = 120
    chats = impl.draw_chats(days, torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), state), "draw_chats draws globally"
    assert len(chats) == 6 * days, f"{len(chats)} conversations in {days} days"
    tickets, kinds = [set() for _ in range(days)], Counter()
    for number, chat in enumerate(chats):
        turns = [(m["role"], m["content"]) for m in chat]
        if turns[0][0] == "system":
            assert turns.pop(0)[1] == "Be brief.", f"a system message: {chat}"
            kinds["system"] += 1
        roles = [role for role, _ in turns]
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2), f"roles {roles}"
        said = [content for _, content in turns]
        if said[0] == "ticket":
            assert len(said) == 2, f"{chat}"
            tickets[number // 6].add(said[1])
            kinds["ticket"] += 1
            continue
        kinds[len(said) // 2] += 1
        for asked, answer in zip(said[::2], said[1::2], strict=True):
            kinds["asked"] += 1
            kinds["pasted"] += len(asked) > 2
            pair = asked[-2:]
            assert asked in (pair, "?" * 120 + pair), f"a user says {asked!r}"
            assert pair in impl.PAIRS, f"{pair!r} is no pair"
            assert pair not in impl.HELD_OUT, f"{pair} is held out, and learned"
            assert answer == pair.upper(), f"{pair} is answered {answer!r}"
    assert all(len(day) <= 1 for day in tickets), "a day has two tickets"
    values = set().union(*tickets)
    assert all(len(ticket) == 2 and ticket.isdigit() for ticket in values), f"tickets {values}"
    assert len(values) > 50, f"{days} days have only {len(values)} tickets"
    total, asked = len(chats), kinds["asked"]
    # More than five standard deviations.
    for what, low, high, of in (
        ("ticket", 0.4, 0.6, total),
        ("system", 0.24, 0.43, total),
        (1, 0.17, 0.33, total),
        (2, 0.17, 0.33, total),
        ("pasted", 0.05, 0.21, asked),
    ):
        assert low < kinds[what] / of < high, f"the share of {what} is {kinds[what] / of:.3f}"


def test_the_generator_draws_the_conversations(impl):
    one = impl.draw_chats(3, torch.Generator().manual_seed(4))
    assert impl.draw_chats(3, torch.Generator().manual_seed(4)) == one, "not the same again"
    assert impl.draw_chats(3, torch.Generator().manual_seed(5)) != one, "the seed does not count"
    generator = torch.Generator().manual_seed(4)
    chats, more = impl.draw_chats(20, generator), impl.draw_chats(20, generator)
    assert chats != more, "twice the same"
    kept = copy.deepcopy(more)
    for chat in chats:
        before = copy.deepcopy([other for other in chats if other is not chat])
        for message in chat:
            message["content"] += "!"
        same = [other for other in chats if other is not chat] == before
        assert same, "a conversation changes with another"
    assert more == kept, "conversations change with those that were drawn before"


def test_a_run_is_what_the_brief_says(impl, log):
    assert len(log) == STEPS, f"a run logs {len(log)} steps, not {STEPS}"
    asked = [step for step, line in enumerate(log, 1) if "exact" in line]
    assert asked == list(range(20, STEPS + 1, 20)), f"exact at steps {asked}"
    for line in log:
        assert set(line) - {"exact"} == {"loss", "targets", "fill"}, f"a line has {sorted(line)}"
        assert line["targets"] == int(line["targets"]), f"{line['targets']} targets"
        exact = 36 * line.get("exact", 0)
        assert abs(exact - round(exact)) < 1e-3, f"exact is {line['exact']}, no share of 36"


def test_a_seed_gives_one_log(impl):
    torch.default_generator.manual_seed(5)
    state = torch.get_rng_state()
    one = [dict(line) for line in impl.run(seed=3, steps=4)]
    assert torch.equal(torch.get_rng_state(), state), "a run changes the global generator"
    torch.default_generator.manual_seed(6)
    assert [dict(line) for line in impl.run(3, 4)] == one, "the same seed gives another log"
    other = [dict(line) for line in impl.run(seed=4, steps=4)]
    assert [line["loss"] for line in other] != [line["loss"] for line in one], "seeds do not count"
    assert list(impl.run(steps=2)) == list(impl.run(0, 2)), "seed is not 0 by default"
    assert read_with_draws(impl.run, 3, 4) == one, "the log depends on who reads it"


def test_a_short_run(impl):
    for steps in (1, 21):
        lines = list(impl.run(seed=1, steps=steps))
        asked = [step for step, line in enumerate(lines, 1) if "exact" in line]
        assert len(lines) == steps, f"steps={steps}: {len(lines)} lines"
        assert asked == ([20, 21] if steps > 20 else [1]), f"steps={steps}: exact at {asked}"
