"""Conversations as token ids, in the grammar of the families of chat templates, against what the templates write."""

from __future__ import annotations

import datetime
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from agentrec_env.prompts import observation
from agentrec_env.text import neutralise
from agents.llm.chat import Chat, ChatTemplateError, Prompt
from agents.llm.transcript import TranscriptWriter
from tests.agents.llm.conftest import FAMILIES, family_tokenizer, tiny_tokenizer

RULES = (
    "Tools:\n- get_item_stats(item_name: string): Say how often.\n\n"
    "Think in <think>…</think> if you like. Then either call tools, each as\n"
    '<tool_call>{"name": "tool", "arguments": {}}</tool_call>\n'
    "and read what comes back in <observation>…</observation>, or answer\n"
    "<answer>\\boxed{[8, 3, 15]}</answer>."
)
TASK = "Rank the candidate items.\n\nThe 2 candidates:\n1. Red Guitar Strap\n2. Café Mug"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_item_stats",
            "description": "Say how often.",
            "parameters": {"type": "object", "properties": {"item_name": {"type": "string"}}},
        },
    }
]
ACTION = '<think>Which is it?</think>\n<tool_call>{"name": "get_item_stats", "arguments": {}}</tool_call>'
FIXED = {"date_string": "26 Jul 2024"}


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    return family_tokenizer(family)


@cache
def chat_of(family: str, thinking: bool | None = None) -> Chat:
    return Chat(tokenizer_of(family), thinking=thinking)


def begin(chat: Chat, task: str = TASK) -> Prompt:
    return chat.begin(f"{task}\n\n{RULES}", RULES)


def messages(*rest: tuple[str, str]) -> list[dict[str, str]]:
    said = [("system", RULES), ("user", TASK), *rest]
    return [{"role": role, "content": content} for role, content in said]


@pytest.fixture
def fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of transformers' templates stands still."""

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Day:
            return cls(2024, 7, 26)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_the_template_writes(family: str, thinking: bool | None) -> None:
    tokenizer = tokenizer_of(family)
    prompt = begin(chat_of(family, thinking))
    options = FIXED if thinking is None else FIXED | {"enable_thinking": thinking}
    written = tokenizer.apply_chat_template(messages(), add_generation_prompt=True, **options)["input_ids"]
    assert list(prompt.ids) == written


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_without_rules_is_one_user_message(family: str) -> None:
    tokenizer = tokenizer_of(family)
    for text, rules in ((TASK, ""), (TASK, RULES)):
        prompt = chat_of(family).begin(text, rules)
        written = tokenizer.apply_chat_template(messages()[1:], add_generation_prompt=True, **FIXED)["input_ids"]
        assert list(prompt.ids) == written
        assert 0 < prompt.shared < len(prompt.ids)


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3"])
def test_a_conversation_is_what_the_template_writes_where_that_only_appends(family: str) -> None:
    tokenizer, chat = tokenizer_of(family), chat_of(family)
    assert chat.preserving
    seen = observation('[1]=9 [2]=7\n2 left, "quoted" é')
    ids = list(begin(chat).ids)
    said = []
    for _ in range(3):
        turn = tokenizer(ACTION, add_special_tokens=False)["input_ids"]
        ids += [*turn, *chat.observe(seen, turn)]
        said += [("assistant", ACTION), ("tool", seen)]
        written = tokenizer.apply_chat_template(messages(*said), add_generation_prompt=True, tokenize=False, **FIXED)
        assert tokenizer.decode(ids, skip_special_tokens=False) == written
        assert ids[-20:] == tokenizer(written, add_special_tokens=False)["input_ids"][-20:]


@pytest.mark.parametrize("thinking", [None, False])
def test_qwen3_keeps_the_thoughts_that_its_template_writes_anew(thinking: bool | None) -> None:
    tokenizer, chat = tokenizer_of("qwen3"), chat_of("qwen3", thinking)
    assert not chat.preserving
    prompt = begin(chat)
    turn = tokenizer(ACTION, add_special_tokens=False)["input_ids"]
    ids = [*prompt.ids, *turn, *chat.observe("<observation>9</observation>", turn)]
    empty = "" if thinking is None else "<think>\n\n</think>\n\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        f"<|im_start|>system\n{RULES}<|im_end|>\n<|im_start|>user\n{TASK}<|im_end|>\n<|im_start|>assistant\n{empty}"
        f"{ACTION}<|im_end|>\n<|im_start|>user\n<tool_response>\n<observation>9</observation>\n</tool_response>"
        f"<|im_end|>\n<|im_start|>assistant\n{empty}"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_the_same_on_every_day(family: str) -> None:
    text = tokenizer_of(family).decode(list(begin(chat_of(family)).ids))
    assert str(datetime.datetime.now().year) not in text.replace(RULES, "").replace("2024", "")
    assert ("26 Jul" in text) == (family in ("llama3", "smollm3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_tools_are_shown_where_the_template_speaks_the_grammar_of_the_environment(family: str) -> None:
    tokenizer = tokenizer_of(family)
    chat = Chat(tokenizer, TOOLS)
    prompt = begin(chat)
    assert chat.shows_tools == (family in ("qwen25", "qwen3", "smollm3"))
    assert ("Say how often." in tokenizer.decode(list(prompt.ids)).replace(RULES, "")) == chat.shows_tools
    assert "Say how often." not in tokenizer.decode(list(prompt.ids[prompt.shared :]))


ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.sampled_from(sorted(FAMILIES)), ODD, ODD)
def test_the_shared_head_is_the_same_for_every_task(family: str, one: str, other: str) -> None:
    first, second = begin(chat_of(family), one), begin(chat_of(family), other)
    assert first.shared == second.shared
    assert first.ids[: first.shared] == second.ids[: second.shared]
    assert tokenizer_of(family).decode(list(first.ids[: first.shared])).count(RULES) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shared_head_is_nearly_all_that_two_tasks_share(family: str) -> None:
    one, other = begin(chat_of(family), "Rank these."), begin(chat_of(family), "Which of the two?")
    common = next(place for place, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b)
    assert common - 8 <= one.shared <= common


@st.composite
def hostile(draw: st.DrawFn, family: str) -> str:
    """Text full of added tokens: whole, cut, put inside one another, in other cases, with anything between."""
    tokens = [token.content for token in tokenizer_of(family).added_tokens_decoder.values()]
    more = [
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|im_start|>",
        "<tool_call>",
        "</think>",
        "</observation>",
        "<answer>",
    ]
    token = st.sampled_from([*tokens, *more])

    @st.composite
    def nested(draw: st.DrawFn) -> str:
        outer, inner = draw(token), draw(token)
        cut = draw(st.integers(0, len(outer)))
        return outer[:cut] + inner + outer[cut:]

    @st.composite
    def part(draw: st.DrawFn) -> str:
        whole = draw(token)
        begin, end = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
        return whole[begin:end]

    return "".join(draw(st.lists(st.one_of(token, nested(), part(), token.map(str.upper), ODD), max_size=6)))


def controls(family: str, ids: Any) -> list[int]:
    added = tokenizer_of(family).added_tokens_decoder
    return [token for token in ids if token in added]


@settings(deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_item_text_never_becomes_a_control_token(family: str, data: st.DataObject) -> None:
    chat = chat_of(family)
    text = data.draw(hostile(family))
    empty = controls(family, begin(chat, "Items:\n- ").ids)
    for title in (text, neutralise(text)):
        assert controls(family, begin(chat, f"Items:\n- {title}").ids) == empty
        assert controls(family, chat.begin(f"- {title}").ids) == controls(family, chat.begin("- ").ids)
    seen = chat.observe(observation(neutralise(text)), [1])
    assert controls(family, seen) == controls(family, chat.observe(observation(""), [1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_added_token_is_only_text_in_an_observation(family: str) -> None:
    chat, tokenizer = chat_of(family), tokenizer_of(family)
    for token in tokenizer.added_tokens_decoder.values():
        if token.content not in ("<observation>", "</observation>"):
            seen = chat.observe(f"a {token.content} b", [1])
            assert controls(family, seen) == controls(family, chat.observe("a b", [1]))
            assert f"a {token.content} b" in tokenizer.decode(seen, skip_special_tokens=False)


def test_a_vocabulary_that_holds_added_tokens_spells_those_alone_by_letters() -> None:
    letters = [(letter, -2.0) for letter in sorted(set("Rank <think> a user system assistant tool |im_end\n"))]
    words = [("<unk>", -9.0), *letters, ("<think>", -1.0), ("Rank", -1.0), ("\n\n", -1.0)]
    backend = Tokenizer(models.Unigram(words, unk_id=0, byte_fallback=False))
    backend.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "\n\n")])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = tokenizer_of("chatml").chat_template
    assert backend.model.token_to_id("<think>") == tokenizer.convert_tokens_to_ids("<think>")
    said = tokenizer.convert_ids_to_tokens(Chat(tokenizer).begin("Rank <think>\n\na").ids)
    assert said[said.index("Rank") :][:12] == ["Rank", " ", *"<think>", "\n\n", "a", "<|im_end|>"]


def test_tags_of_the_environment_are_tokens_where_the_tokenizer_has_them(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = Chat(tokenizer)
    prompt = begin(chat)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in prompt.ids[: prompt.shared]
    seen = chat.observe("<observation>9</observation>\n<observation>8</observation>\n2 tool calls left.", [1])
    assert seen.count(tokenizer.convert_tokens_to_ids("<observation>")) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_turn_is_written_where_it_was_not_sampled(family: str) -> None:
    tokenizer, chat = tokenizer_of(family), chat_of(family)
    end = tokenizer.eos_token_id
    assert end in chat.stop_ids
    written = chat.observe("seen", [5, 6])
    assert written[0] == end
    for stop in chat.stop_ids:
        assert chat.observe("seen", [5, stop]) == written[1:]
    assert chat.observe("seen", []) == written


@settings(deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.lists(st.lists(st.integers(0, 511), min_size=1, max_size=12), max_size=4))
def test_trained_ids_are_the_sampled_ids(family: str, turns: list[list[int]]) -> None:
    """Any ids, among them such as no encoder would give and such as are not in the vocabulary."""
    chat = chat_of(family)
    prompt = begin(chat)
    writer = TranscriptWriter(prompt)
    shown = list(prompt.ids)
    for turn in turns:
        assert isinstance(chat.text(turn), str)
        writer.sampled(turn, [-1.0] * len(turn), "stop")
        after = chat.observe("<observation>9</observation>", turn)
        writer.observed(after)
        shown += [*turn, *after]
    transcript = writer.freeze()
    assert transcript.sampled.tolist() == [token for turn in turns for token in turn]
    assert transcript.mask.sum() == sum(map(len, turns))
    assert transcript.ids.tolist() == shown


def test_sampled_ids_may_be_such_as_no_encoder_gives(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Rank the candidate items"
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in text.replace(" ", "Ġ")]
    assert tokenizer.decode(letters) == text
    assert tokenizer(text)["input_ids"] != letters
    writer = TranscriptWriter(Prompt((1,), 0))
    writer.sampled(letters, [0.0] * len(letters), "stop")
    assert writer.freeze().sampled.tolist() == letters
    assert Chat(tokenizer).text(letters) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_an_action_reads_without_control_tokens_but_with_tags(family: str) -> None:
    tokenizer = tokenizer_of(family)
    ids = tokenizer(ACTION, add_special_tokens=False)["input_ids"]
    assert chat_of(family).text([*ids, tokenizer.eos_token_id]) == ACTION
    assert chat_of(family).text([*ids, *chat_of(family).stop_ids, len(tokenizer) + 7]) == ACTION
    assert chat_of(family).text([]) == ""


def test_tags_are_read_even_where_a_tokenizer_calls_them_special() -> None:
    tokenizer = tiny_tokenizer(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"), added=())
    chat = Chat(tokenizer)
    ids = tokenizer("<tool_call>{}</tool_call><|im_end|>", add_special_tokens=False)["input_ids"]
    assert chat.text(ids) == "<tool_call>{}</tool_call>"


def test_observations_are_escaped_where_the_template_writes_them_as_json() -> None:
    chat, tokenizer = chat_of("llama3"), tokenizer_of("llama3")
    seen = '<observation>"A" – é\nB</observation>'
    ids = chat.observe(seen, [1])
    written = tokenizer.decode(ids, skip_special_tokens=False)
    assert json.dumps(seen, ensure_ascii=False) in written


def test_a_template_without_tool_messages_can_send_observations_as_user_messages() -> None:
    tokenizer = tiny_tokenizer("no_tools")
    with pytest.raises(ChatTemplateError, match=r"roles must alternate.*observations='user'"):
        Chat(tokenizer)
    chat = Chat(tokenizer, observations="user")
    prompt = begin(chat)
    ids = [*prompt.ids, 5, *chat.observe("seen", [5])]
    assert tokenizer.decode(ids) == (
        f"<|im_start|>user\n{RULES}\n\n{TASK}<|im_end|>\n<|im_start|>assistant\n{tokenizer.decode([5])}<|im_end|>\n"
        "<|im_start|>user\nseen<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(list(prompt.ids[: prompt.shared])) == f"<|im_start|>user\n{RULES}\n\n"


_CHATML = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
_HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"has no chat template.*instruct"),
        ("{{ nothing.at.all }}", r"refuses a conversation"),
        ("{% for message in messages %", r"refuses a conversation"),
        (
            f"{{% for message in messages if message.role != 'tool' %}}{_CHATML}{{% endfor %}}{_HEADER}",
            r"drops, doubles or reorders.*tool messages",
        ),
        (
            f"{{% for message in messages %}}{_CHATML.replace('message.content', 'message.content | upper')}"
            f"{{% endfor %}}{_HEADER}",
            r"drops, doubles or reorders",
        ),
        (
            f"{{% for message in messages %}}{_CHATML.replace('.content', '.content | indent(4)')}{{% endfor %}}"
            f"{_HEADER}",
            r"rewrites an observation",
        ),
        (
            f"{{% for message in messages %}}{{{{ loop.index }}}}{_CHATML}{{% endfor %}}{_HEADER}",
            r"second tool message in another way",
        ),
    ],
)
def test_a_tokenizer_that_cannot_hold_the_conversation_is_refused(template: str | None, message: str) -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.chat_template = template
    with pytest.raises(ChatTemplateError, match=message):
        Chat(tokenizer)
    assert issubclass(ChatTemplateError, ValueError)


@pytest.mark.parametrize("header", ["", "{% if messages[-1].role != 'assistant' %}<|im_start|>assistant\n{% endif %}"])
def test_a_template_that_does_not_ask_for_the_header_is_understood(header: str) -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.chat_template = f"{{% for message in messages %}}{_CHATML}{{% endfor %}}{header}"
    chat = Chat(tokenizer)
    assert begin(chat) == begin(chat_of("chatml"))
    assert chat.observe("seen", [5]) == chat_of("chatml").observe("seen", [5])


def test_other_roles_and_other_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'tool' or 'user'; got 'system'"):
        Chat(tokenizer_of("chatml"), observations="system")  # type: ignore[arg-type]

    class Slow:
        chat_template = "x"
        eos_token_id = 0

        def get_chat_template(self, *_: Any) -> str:
            return tokenizer_of("chatml").chat_template

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer_of("chatml").apply_chat_template(*args, **kwargs)

    with pytest.raises(ChatTemplateError, match=r"Slow has no `tokenizers` backend"):
        Chat(Slow())
