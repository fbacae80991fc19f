"""The evaluation items: nothing held out that training shows, tools balanced, suites large enough."""

import collections
import json
from functools import cache
from itertools import chain

import pytest

from mm.plugins.sources.skills import calls, checks, corpus, facts, lines, suites, tools
from mm.plugins.sources.skills.corpus import conversations
from mm.plugins.sources.skills.phrases import QUESTIONS, STATEMENTS
from mm.plugins.sources.skills.splits import halves, three_way
from mm.plugins.sources.skills.turns import question_of
from mm.plugins.sources.skills.world import make_world

SEEDS = (0, 1, 2)
generated = cache(corpus.generate)


@pytest.fixture(scope="module", params=SEEDS)
def data(request):
    return generated(request.param)


def every_item(data):
    return [*data["dev"], *data["test"]]


def put(item):
    """What the item asks, as training would have to hold it."""
    return item["prompt"] if "prompt" in item else question_of(item["conversations"])


def asked_in_training(data):
    """Every conversation's user turns, together and each alone."""
    return {text for turns in conversations(data) for text in (question_of(turns), *question_of(turns).split("\n"))}


def texts(data):
    return "\n".join(row["text"] for row in data["pretrain"])


def said(data):
    return "\n".join(turn["content"] for turns in conversations(data) for turn in turns)


def requests_of(item):
    """The tools that the item's question was made for."""
    kinds = [("train", False)] + [(split, never) for split in ("dev", "test") for never in (False, True)]
    pools = [pool_of(split, count, never) for split, never in kinds for count in (1, 2)]
    return {tool for pool in pools for tool, questions in pool.items() if put(item) in questions}


@cache
def pool_of(split, count, never):
    return {tool: {r.text for r in pool} for tool, pool in calls.requests(split, count, never).items()}


def tool_of(item):
    (tool,) = requests_of(item)
    return tool


def test_splits_are_exact_and_disjoint():
    split = three_way(range(200))
    assert [len(split[name]) for name in ("train", "dev", "test")] == [140, 30, 30]
    assert sorted(chain(*split.values())) == list(range(200))
    assert three_way(reversed(range(200))) == split
    assert sorted(chain(*halves("abcde").values())) == list("abcde")


def test_new_and_never_are_not_in_training(data):
    trained = asked_in_training(data)
    for item in every_item(data):
        if item["tier"] != "seen" and item["suite"] != "cloze":
            assert put(item) not in trained


def test_new_cloze_sentences_are_in_no_text_nor_reply(data):
    written = texts(data) + said(data)
    for item in every_item(data):
        if item["suite"] == "cloze":
            expected = item["check"]["starts"]
            sentence = item["prompt"] + (" " if expected.isascii() else "") + expected
            assert (sentence in written) == (item["tier"] == "seen")


def assert_seen_is_seen(data, split):
    trained = asked_in_training(data)
    written = texts(data)
    for item in data[split]:
        if item["tier"] == "seen":
            assert put(item) in (written if item["suite"] == "cloze" else trained)


def test_seen_was_asked_in_training(data):
    assert_seen_is_seen(data, "dev")
    assert_seen_is_seen(data, "test")


def test_unknown_values_are_nowhere_in_training(data):
    everything = "\n".join(json.dumps(data[name], ensure_ascii=False) for name in corpus.NAMES[:5])
    assert not [word for word in make_world().forbidden_strings() if word in everything]


def test_facts_never_asked_are_nowhere_in_conversations(data):
    replies = said(data)
    for item in every_item(data):
        if item["suite"] == "facts" and item["tier"] == "never":
            assert item["check"]["equals"] not in replies


def test_scale_limits_training_and_keeps_held_out_items():
    small = corpus.generate(0, scale=0.1)
    for name in ("pretrain", "sft", "preference", "prompts", "agent"):
        assert len(small[name]) == pytest.approx(len(generated(0)[name]) / 10, rel=0.05)

    def held(rows):
        return sorted((i["suite"], put(i)) for i in rows if i["tier"] != "seen")

    for split in ("dev", "test"):
        assert held(small[split]) == held(generated(0)[split])
        assert_seen_is_seen(small, split)


def test_dev_and_test_share_nothing(data):
    dev = {(item["suite"], put(item)) for item in data["dev"]}
    test = {(item["suite"], put(item)) for item in data["test"]}
    assert not dev & test
    assert len(dev) == len(data["dev"]) and len(test) == len(data["test"])


def test_what_one_seed_holds_out_no_other_trains_on():
    trained = set().union(*(asked_in_training(generated(seed)) for seed in SEEDS))
    for item in generated(0)["test"]:
        assert item["tier"] == "seen" or item["suite"] == "cloze" or put(item) not in trained


def test_results_held_for_tool_answers_are_not_in_training(data):
    shown = {
        (question_of(turns), turn["content"]) for turns in conversations(data) for turn in turns if turn["role"] == "tool"
    }
    finals = {turns[-1]["content"] for turns in conversations(data) if any(t["role"] == "tool" for t in turns)}
    for item in every_item(data):
        if item["suite"] == "tool_answer" and item["tier"] != "seen":
            assert (put(item), item["conversations"][-1]["content"]) not in shown
            assert item["check"]["equals"] not in finals or tool_of(item) == "calculate"


def test_every_suite_has_a_hundred_items_in_its_tiers(data):
    for split in ("dev", "test"):
        sizes = collections.Counter(item["suite"] for item in data[split])
        assert set(sizes) == set(suites.SUITES)
        assert min(sizes.values()) >= 100
        tiers = {suite: {item["tier"] for item in data[split] if item["suite"] == suite} for suite in sizes}
        assert tiers.pop("cloze") == {"seen", "new"}
        assert all(found == set(suites.TIERS) for found in tiers.values())


@pytest.mark.parametrize("suite", ["tool", "tool_answer", "agent"])
def test_every_tool_is_equally_often_in_each_tier(data, suite):
    for split in ("dev", "test"):
        for tier in suites.TIERS:
            items = [item for item in data[split] if item["suite"] == suite and item["tier"] == tier]
            counts = collections.Counter(map(tool_of, items))
            assert set(counts) == set(tools.TOOLS) and len(set(counts.values())) == 1


def test_every_value_and_wording_of_a_tool_is_trained_on(data):
    trained = {question_of(row["conversations"]) for row in data["sft"]}
    for tool, pool in calls.requests("train").items():
        if tool != "calculate":
            met = [request for request in pool if request.text in trained]
            assert len(met) == len(pool)
            assert {(r.language, r.wording) for r in met} == {(x, i) for x in ("zh", "en") for i in range(4)}
            assert {r.values for r in met} == {(v,) for x in ("zh", "en") for v in calls.values(tool, x, True)}


def test_an_opening_belongs_to_one_attribute():
    for language in ("zh", "en"):
        openings = [form.partition("{v}")[0] for kinds in STATEMENTS.values() for form in kinds[language]]
        assert not [(a, b) for a in openings for b in openings if a is not b and b.startswith(a)]
        questions = [form for kinds in QUESTIONS.values() for form in kinds[language]]
        assert len(set(questions)) == 15


def test_all_facts_are_stated_in_pretraining(data):
    written = texts(data)
    for item in every_item(data):
        if item["suite"] == "facts" and item["tier"] == "never":
            assert item["check"]["equals"] in written


def test_unknown_words_are_made_of_what_pretraining_copies():
    for word in (*calls.UNKNOWN_CITIES, *calls.UNKNOWN_TOPICS):
        assert set(word.zh) <= set(lines.CHARACTERS)


def test_reference_answers_pass_and_mutated_ones_fail(data):
    for item in every_item(data):
        right = checks.reference(item)
        assert checks.score(item, right) and checks.score(item, f"<think>\nhm\n</think>\n\n{right}\n")
        assert checks.score(item, f"hm\n</think>\n\n{right}")
        assert not checks.score(item, "")
        assert not checks.score(item, f"<think>\n{right}")
        assert not checks.score(item, mutated(item, right))


def mutated(item, right):
    kind = next(iter(item["check"]))
    if kind in ("starts", "contains"):
        return "x" + right.swapcase() if kind == "starts" else right + "x"
    if kind == "answer":
        return right.replace("<answer>", "<answer>1")
    return right.replace('": "', '": "x', 1) if kind == "call" else "x" + right


def test_shown_replies_of_sft_pass_where_they_should():
    world = make_world(0)
    cases = corpus.sft_cases(0, world, facts.make_plan(world), 0.2)
    for case in cases:
        if case.suite in ("facts", "chat", "reason", "tool_answer") or (case.suite == "follow_up" and case.reply["content"]):
            assert checks.score(case.item("seen"), case.reply["content"])
        elif case.suite == "tool":
            (call,) = json.loads(case.reply["tool_calls"])
            assert checks.score(case.item("seen"), f"<tool_call>\n{json.dumps(call)}\n</tool_call>")
