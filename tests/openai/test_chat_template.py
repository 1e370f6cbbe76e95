"""Templates as models ship them, and what callers may do with them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import transformers

from pilotfish_core.errors import InvalidRequest, ModelLoadError
from pilotfish_openai.chat_template import CONFIG_FILE, TEMPLATE_FILE, ChatTemplate

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim + '\\n\\n' %}
{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 %}{% set content = system + message['content'] %}{% else %}
    {% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}
{% endfor %}"""
LOOPS = """{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
{% if loop.index > 2 %}{% break %}{% endif %}{% generation %}{{ message.content }}{% endgeneration %};
{% endfor %}{{ {"b": "<é>", "a": 1} | tojson }}{{ messages | tojson(indent=2) }}"""
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi <there> & é"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "More?"},
]


@pytest.mark.parametrize("source", [CHATML, LLAMA2, LOOPS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(source: str, add_generation_prompt: bool) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    mine = ChatTemplate(source, special).render(TALK, add_generation_prompt=add_generation_prompt)
    theirs, _ = transformers.utils.chat_template_utils.render_jinja_template(
        conversations=[TALK], chat_template=source, add_generation_prompt=add_generation_prompt, **special
    )
    assert mine == theirs[0]


def test_the_file_goes_before_the_configuration(tmp_path: Path) -> None:
    config = {"chat_template": "old {{ bos_token }}", "bos_token": {"content": "<s>", "lstrip": False}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(TALK) == "old <s>"
    (tmp_path / TEMPLATE_FILE).write_text("new {{ bos_token }}")
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(TALK) == "new <s>"


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(TALK) == "plain"


@pytest.mark.parametrize("config", [None, {}, {"chat_template": [{"name": "tool_use", "template": "x"}]}])
def test_a_model_may_have_none(tmp_path: Path, config: object) -> None:
    if config is not None:
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path) is None


def test_a_broken_template_names_its_file(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FILE).write_text("{% for %}")
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja is not a usable chat template"):
        ChatTemplate.load(tmp_path)
    (tmp_path / TEMPLATE_FILE).unlink()
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.load(tmp_path)


def test_what_a_template_refuses_is_the_callers_error() -> None:
    template = ChatTemplate(LLAMA2, {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(InvalidRequest, match="refuses these messages: Conversation roles must alternate"):
        template.render([{"role": "assistant", "content": "Hello."}])
    with pytest.raises(InvalidRequest, match="cannot render these messages"):
        ChatTemplate("{{ messages[7].content.x.y }}", {}).render(TALK)


def test_a_template_cannot_leave_its_sandbox() -> None:
    for attempt in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception.__globals__ }}"):
        with pytest.raises(InvalidRequest, match="cannot render"):
            ChatTemplate(attempt + "{{ messages.clear() }}", {}).render(TALK)


@pytest.mark.parametrize(
    "source", ["{% for a in [] %}" * 40 + "{% endfor %}" * 40, "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"]
)
def test_a_template_that_python_cannot_compile_is_refused_as_one(source: str) -> None:
    with pytest.raises(ModelLoadError, match="not a usable chat template"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "source", ["{{ 'a' * 10**10 }}", "{{ [1] * 10**9 }}", "{{ 10**(10**10) }}", "{{ 10**9 * 'ab' }}"]
)
def test_a_template_cannot_fill_the_memory(source: str) -> None:
    with pytest.raises(InvalidRequest, match="SecurityError"):
        ChatTemplate(source, {}).render(TALK)
    assert ChatTemplate("{{ 'ab' * 3 }}{{ 2 ** 10 }}", {}).render(TALK) == "ababab1024"


def test_messages_are_data_not_templates() -> None:
    text = "{{ 7 * 7 }}{% raw %}"
    assert ChatTemplate("{{ messages[0].content }}", {}).render([{"role": "user", "content": text}]) == text


def test_variables_of_the_request_and_the_time() -> None:
    assert "<think>" in ChatTemplate(CHATML, {}).render(TALK, extra={"enable_thinking": False})
    assert "<think>" not in ChatTemplate(CHATML, {}).render(TALK)
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render(TALK) == str(datetime.datetime.now().year)
    hidden = ChatTemplate("{{ messages | length }}", {}).render(TALK, extra={"messages": []})
    assert hidden == str(len(TALK))
