"""A model's own conventions: marks found in any chat template, and words that stay words."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.models.base import Encoder
from prlhf.models.chat import ChatTokenizer, Conventions, RefusedPromptError
from prlhf.models.conventions import chat_tokenizer, find_conventions
from tiny import tiny_tokenizer

EOS = 1
SPECIAL, SOFT = ("<|turn|>", "<|close|>", "<|pad|>", "[INST]", "[/INST]"), ("<|soft|>",)


def tokenizer_with_marks() -> PreTrainedTokenizerBase:
    """One token a byte, special tokens, and one mark that is an added token but no special one."""
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL)})
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in SOFT])
    return tokenizer


# -- templates of all kinds --------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """A chat template made of its marks.

    Attributes:
        opens: what stands before a turn, with its role in it.
        end: what stands behind an answer.
        others: what stands behind another turn.
        last: whether the last answer has its end, lacks it, or has the end of the text behind it.
        system: whether a conversation without a system message gets one.
        clock: whether the date is printed.
    """

    opens: str
    end: str
    others: str
    last: str = "closed"
    system: bool = False
    clock: bool = False

    @property
    def jinja(self) -> str:
        def quoted(text: str) -> str:
            return repr(text).replace("ROLE", "' + m['role'] + '")

        end = f"{{{{ {quoted(self.end)} }}}}"
        if self.last == "open":
            end = f"{{% if not loop.last %}}{end}{{% endif %}}"
        if self.last == "text":
            end += (
                "{% if loop.last and not add_generation_prompt %}<|end|>{% endif %}"  # as in Phi-3
            )
        system = quoted(self.opens + "be good" + self.others).replace("m['role']", "'system'")
        return (
            ("{{ strftime_now('%d %b %Y') }}" if self.clock else "")
            + f"{{% if {self.system} and messages[0]['role'] != 'system' %}}{{{{ {system} }}}}"
            + "{% endif %}{% for m in messages %}"
            + f"{{{{ {quoted(self.opens)} + m['content'] }}}}"
            + f"{{% if m['role'] == 'assistant' %}}{end}"
            + f"{{% else %}}{{{{ {quoted(self.others)} }}}}{{% endif %}}{{% endfor %}}"
            + "{% if add_generation_prompt %}{{ "
            + quoted(self.opens).replace("m['role']", "'assistant'")
            + " }}{% endif %}"
        )


OPENS = ("<|turn|>ROLE\n", "<|start|>ROLE: ", "### ROLE:\n", "ROLE>")
ENDS = (
    "<|close|>\n",
    "<|end|>",
    "<|soft|>",
    "[END]\n",
    "\n** over **\n\n",
    "ok<|close|>",
    "\n",
    "",
)
TEMPLATES = [
    Template(opens, end, others, last, system, clock)
    for (opens, end, last), (others, system, clock) in zip(
        itertools.product(OPENS, ENDS, ("closed", "open", "text")),
        itertools.cycle(itertools.product(("\n", "<|close|>\n"), (False, True), (False, True))),
        strict=False,
    )
    # Words behind all answers but the last look like the words that open the next turn.
    if not (last == "open" and end.strip() and "<" not in end + opens)
]


def chat_of(template: Template) -> ChatTokenizer:
    tokenizer = tokenizer_with_marks()
    tokenizer.chat_template = template.jinja
    return chat_tokenizer(tokenizer)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = itertools.cycle(("user", "assistant"))
    found = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return [*([{"role": "system", "content": system}] if system else []), *found]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", TEMPLATES, ids=repr)
def test_a_response_behind_its_prompt_is_what_the_template_prints(template: Template) -> None:
    chat = chat_of(template)
    found, tokenizer = chat.conventions, chat.tokenizer
    encoder = Encoder(chat, 400, 100)
    printed = tokenizer.apply_chat_template(turns("Why?", "So.", "How?"), tokenize=False)
    assert printed.startswith("01 Jan 2025") == template.clock
    before, _, after = printed.partition("So.")
    assert encoder.chat.conversation(turns("Why?")) == ids_of(tokenizer, before)

    response = encoder.response("So.")
    words = template.end.rstrip()
    token = next((m for m in (*SPECIAL, *SOFT, "<|end|>") if words.endswith(m)), "")
    assert after.startswith(words)
    if words and not token and template.last == "text":
        words = template.end  # up to the mark behind the last answer
    assert response == [*ids_of(tokenizer, f"So.{words}"), *([] if token else [EOS])]
    assert EOS in found.stops
    assert response[-1] in found.stops
    assert (found.date is not None) == template.clock
    if words.strip() and token != words:
        own = words.removesuffix(token).strip()
        assert found.stop_texts == (own,)
        assert chat.decode(ids_of(tokenizer, f"So.{words} And more")) == "So."


@pytest.mark.parametrize("opens", OPENS)
def test_without_an_end_mark_the_users_next_turn_ends_an_answer(opens: str) -> None:
    found = chat_of(Template(opens, "\n\n", "\n")).conventions
    start = opens.replace("ROLE", "user")
    if start[0] == "<":
        token = start[: start.index(">") + 1]
        number = tokenizer_with_marks().convert_tokens_to_ids(token)
        assert (set(found.stops), found.stop_texts) == ({EOS, number}, ())
    else:
        assert (found.stops, found.stop_texts) == ((EOS,), ("\n" + start.strip(),))


@pytest.mark.parametrize("template", TEMPLATES[::5], ids=repr)
def test_conventions_survive_their_record(template: Template) -> None:
    found = chat_of(template).conventions
    assert Conventions.from_record(found.record()) == found


def test_the_models_own_settings_end_answers_too() -> None:
    tokenizer = tokenizer_with_marks()
    tokenizer.chat_template = Template("<|turn|>ROLE\n", "<|close|>", "\n").jinja
    pad, close = tokenizer.convert_tokens_to_ids(["<|pad|>", "<|close|>"])
    found = find_conventions(tokenizer, stops={pad})
    assert (found.stops, found.closing) == (tuple(sorted({EOS, pad, close})), (close,))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("hello", "leaves the prompt out"),
        ("{{ messages[0].content * 2 }}", "prints the prompt 2 times"),
        ("{{ messages[0].content | length }}{{ messages[0].content }}", "other marks for another"),
        ("{{ raise_exception('never') }}", "refuses a prompt with the roles user: never"),
        ("{{ messages[0].content + 1 }}", "fails with TypeError"),
        ("{{ messages[0].none.content }}", "has no attribute 'none'"),
        ("{{ (messages[0].content | int) // 0 }}", "fails with ZeroDivisionError"),
        ("{{ strftime_now('%' + 'd') + messages[0].content }}", "it cannot be fixed"),
        ("{% set f = strftime_now %}{{ f('%d') + messages[0].content }}", "it cannot be fixed"),
    ],
)
def test_templates_that_cannot_be_used(template: str, problem: str) -> None:
    tokenizer = tokenizer_with_marks()
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        find_conventions(tokenizer, where="model.name", fix="use another")
    [line] = caught.value.lines()
    assert line.startswith("model.name: ")
    assert line.endswith("(use another)")
    assert problem in line


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ messages[-1].content }}!", "the last turn only"),
        (
            "{% for m in messages %}{{ m.content | upper if m.role == 'assistant' else m.content }}"
            "{% endfor %}",
            "changed",
        ),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
            "{{ messages[0].content }}",
            "one turn",
        ),
    ],
)
def test_templates_that_show_no_answer_leave_its_end_to_the_tokenizer(
    template: str, what: str
) -> None:
    tokenizer = tokenizer_with_marks()
    tokenizer.chat_template = template
    found = find_conventions(tokenizer)
    assert (found.closing, found.stops, found.stop_texts) == ((EOS,), (EOS,), ()), what


def test_nothing_ends_an_answer() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        find_conventions(tokenizer)


# -- refusals ----------------------------------------------------------------------------------

ROLE_RULES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
)
FAILS = "{% for m in messages %}{{ m.content + (1 if m.role == 'system' else '') }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (ROLE_RULES, "system, user: Conversation roles must alternate"),
        (NO_SYSTEM, "system, user: System role not supported"),
        (FAILS, "system, user: it fails with TypeError"),
    ],
)
@pytest.mark.parametrize("words", ["Why?", "Why<|end|>?"])
def test_a_refused_prompt_is_one_line_with_the_rule(template: str, rule: str, words: str) -> None:
    tokenizer = tokenizer_with_marks()
    tokenizer.chat_template = template
    encoder = Encoder(chat_tokenizer(tokenizer), 100, 10)
    with pytest.raises(RefusedPromptError) as caught:
        encoder.prompt(canonical_prompt(turns(words, system="Be kind.")))
    [line] = caught.value.lines()
    assert line.startswith(f"prompt '{words}': the model's chat template refuses")
    assert rule in line
    assert encoder.prompt(canonical_prompt(words))


# -- the date ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["%d %b %Y", "%Y-%m-%d", "%A"])
def test_a_prompt_is_the_same_one_tomorrow(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 5, 7)

    tokenizer = tokenizer_with_marks()
    tokenizer.chat_template = (
        f'{{{{ strftime_now( "{pattern}" ) if strftime_now is defined else date_string }}}}'
        "<|turn|>{% for m in messages %}{{ m.content }}<|close|>{% endfor %}"
    )
    found = find_conventions(tokenizer, date="2024-02-29")
    chat = ChatTokenizer(tokenizer, found)
    ids = chat.conversation(turns("Why?"))
    day = datetime(2024, 2, 29).strftime(pattern)
    assert tokenizer.decode(ids) == f"{day}<|turn|>Why?<|close|>"
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert chat.conversation(turns("Why?")) == ids
    assert found.date == "2024-02-29"
    # Another reader of the model's directory sees the same day.
    told = tokenizer.apply_chat_template(turns("Why?"), tokenize=False)
    assert told == tokenizer.decode(ids)


# -- what post-processors add ------------------------------------------------------------------

PROCESSORS = ("$A", "<|start|> $A", "$A <|end|>", "<|start|> $A <|end|>", "<|start|> $A <|end|>")


@pytest.mark.parametrize("single", PROCESSORS)
@pytest.mark.parametrize("template", [None, Template("<|turn|>ROLE\n", "<|close|>\n", "\n").jinja])
def test_no_end_mark_of_a_post_processor_gets_into_a_prompt(
    single: str, template: str | None
) -> None:
    plain, tokenizer = tokenizer_with_marks(), tokenizer_with_marks()
    plain.chat_template = tokenizer.chat_template = template
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair="$A $B", special_tokens=[("<|start|>", 0), ("<|end|>", EOS)]
    )
    encoder, bare = (
        Encoder(chat_tokenizer(tokenizer), 99, 20, 20),
        Encoder(chat_tokenizer(plain), 99, 20, 20),
    )
    prompt = canonical_prompt(turns("Why?", "So.", "How?"))
    start = [0] if single.startswith("<|start|>") and template is None else []
    assert encoder.prompt(prompt) == [*start, *bare.prompt(prompt)]
    assert EOS not in encoder.prompt(prompt)
    assert encoder.response("So.") == bare.response("So.")
    text = encoder.prompt(prompt, "I am new.")
    assert text == [*ids_of(plain, "I am new.\n"), *start, *bare.prompt(prompt)]


# -- hostile words -----------------------------------------------------------------------------


def sentencepiece_like(kind: str) -> PreTrainedTokenizerBase:
    """A vocabulary of characters, with white space as in SentencePiece, and marks in it."""
    marks = ["<s>", "</s>", "<|turn|>", "<|close|>"]
    characters = [chr(code) for code in range(33, 127)] + ["▁", "é", "<0x0A>"]
    if kind == "unigram":
        # Marks are among the words, and far likelier than their characters.
        scores = [(mark, 0.0) for mark in marks] + [(each, -5.0) for each in characters]
        tokenizer = Tokenizer(models.Unigram([("<unk>", -9.0), *scores], unk_id=0))
    else:
        vocabulary = {each: at for at, each in enumerate(["<unk>", *marks, *characters])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    scheme, split = ("always", False) if kind == "unigram" else (kind, True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    # In the normalised text: characters of other widths make this mark as well.
    fast.add_tokens([AddedToken("<|close|>", special=False, normalized=True)])
    return fast


def hostile_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    if kind == "bytes":
        tokenizer = tokenizer_with_marks()
        tokenizer.chat_template = Template("<|turn|>ROLE\n", "<|soft|>\n", "<|soft|>\n").jinja
    else:
        tokenizer = sentencepiece_like(kind)
        tokenizer.chat_template = Template("<|turn|>ROLE ", "<|close|>", "<|close|>").jinja
    return tokenizer


KINDS = ("bytes", "first", "never", "unigram")
CHATS = {kind: chat_tokenizer(hostile_tokenizer(kind)) for kind in KINDS}
WIDE = "".join(chr(ord(character) + 0xFEE0) for character in "<|close|>")
HOSTILE = st.lists(
    st.sampled_from(
        [
            *(*SPECIAL, *SOFT, "<|start|>", "<|end|>", "<s>", "</s>", "<unk>", WIDE, "\ue000"),
            *("system", "user\n", "\n", " ", "a", "Be bad.", "<|", "|>", "<"),
        ]
    )
    | st.text(max_size=4),
    min_size=1,
    max_size=8,
).map("".join)


def control_ids(chat: ChatTokenizer, ids: list[int]) -> list[int]:
    numbers = chat.tokenizer.convert_tokens_to_ids(sorted(chat.control_tokens))
    return [i for i in ids if i in set(numbers) - {chat.tokenizer.unk_token_id}]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(system=HOSTILE, asked=HOSTILE, answered=HOSTILE, last=HOSTILE)
def test_no_words_make_a_mark(kind: str, system: str, asked: str, answered: str, last: str) -> None:
    chat = CHATS[kind]
    encoder = Encoder(chat, 10**6, 10**6, 10**6)
    shape = control_ids(chat, chat.conversation(turns("a", "b", "c", system="s")))
    words = canonical_prompt(turns(f"{asked}.", f"{answered}.", f"{last}.", system=f"{system}."))
    prompt = encoder.prompt(words)
    assert control_ids(chat, prompt) == shape
    assert control_ids(chat, encoder.prompt(words, asked)) == shape
    response = encoder.response(answered)
    closing = list(chat.conventions.closing)
    assert response[-len(closing) :] == closing
    assert control_ids(chat, response[: -len(closing)]) == []


@settings(max_examples=40)
@given(asked=HOSTILE, answered=HOSTILE)
def test_hostile_words_are_read_whole(asked: str, answered: str) -> None:
    """One token a byte loses nothing, so every character can be looked for."""
    chat = CHATS["bytes"]
    asked, answered = (text.replace("\ue000", "") for text in (asked, answered))
    tokenizer = chat.tokenizer
    prompt = chat.conversation(turns(f"{asked}."))
    assert tokenizer.decode(prompt) == f"<|turn|>user\n{asked}.<|soft|>\n<|turn|>assistant\n"
    assert tokenizer.decode(chat.text(asked)) == asked
    kept = chat.without_end(answered)
    assert answered.startswith(kept)
    marks = answered[len(kept) :]
    for mark in (tokenizer.eos_token, "<|soft|>"):
        marks = marks.replace(mark, "")
    assert not marks.strip()


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_ordinary_words_are_read_as_before(text: str) -> None:
    for chat in CHATS.values():
        if not any(mark in text for mark in chat.control_tokens):
            assert chat.text(text) == ids_of(chat.tokenizer, text)
            told = chat.tokenizer.apply_chat_template(
                turns(text or "a"), tokenize=True, add_generation_prompt=True
            )
            assert chat.conversation(turns(text or "a")) == told["input_ids"]


@pytest.mark.parametrize("trail", ["", "<|soft|>", "<|end|>", "<|soft|>\n", " <|soft|> <|end|>\n"])
def test_an_end_mark_that_the_words_bring_along_is_no_second_one(trail: str) -> None:
    chat = CHATS["bytes"]
    encoder = Encoder(chat, 200, 40)
    space = " " if trail.startswith(" ") else ""
    soft = chat.tokenizer.convert_tokens_to_ids("<|soft|>")
    assert encoder.response(f"So.{trail}") == [*chat.text(f"So.{space}"), soft]
    assert chat.conversation(turns("Why?", f"So.{trail}", "How?")) == chat.conversation(
        turns("Why?", f"So.{space}", "How?")
    )
    assert encoder.response("<|soft|> is a mark ") == [*chat.text("<|soft|> is a mark "), soft]


def test_a_long_run_of_end_marks_is_taken_off_at_once() -> None:
    assert CHATS["bytes"].without_end("x" + "<|end|> " * 100_000) == "x"
    assert CHATS["bytes"].without_end("<|end|>" * 100_000 + "x").endswith("x")
