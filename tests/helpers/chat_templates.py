"""Chat templates in the manner of public ones, one a kind of difficulty; written for the tests."""

from __future__ import annotations

_START, _END = "<|im_start|>", "<|im_end|>"

#: ChatML: marks around every turn, nothing else.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Llama 3.2: today's date in a system turn that is always there.
DATED = (
    "{{ bos_token }}{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    "<|system|>Today Date: {{ strftime_now('%d %b %Y') }}\n\n{{ system }}<|eot|>"
    "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
#: DeepSeek-R1 distills: the generation prompt opens <think>, finished answers lose their reasoning.
DISTILLED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'assistant' %}"
    "{% set content = m.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|Assistant|>{{ content }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
_REASONING = (
    "{% set content = m.content or '' %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
#: Qwen3: the last answer has a thinking block, empty or not; earlier ones have none.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}" + _REASONING + "<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}{{ content }}"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Qwen3.5: the same, and the generation prompt opens the block.
OPENED = THINKING[: -len("{% endif %}")] + "<think>\n{% endif %}"
#: QwQ: the generation prompt opens a block that finished plain answers do not have.
QUESTIONING = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "<|im_start|>assistant\n{{ content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
#: Nemotron: a system turn always, thinking blocks closed on one line where they are empty.
SWITCHED = (
    "<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}<|im_end|>\n{% for m in messages %}"
    "{% if m.role == 'assistant' %}" + _REASONING + "<|im_start|>assistant\n"
    "{% if thought %}<think>\n{{ thought.strip('\n') }}\n</think>\n{{ content }}"
    "{% else %}<think></think>{{ content }}{% endif %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
#: gpt-oss: channels; reasoning is a field, calls follow the role, the last answer ends otherwise.
CHANNELS = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}{% if m.role == 'system' %}"
    "<|start|>developer<|message|># Instructions\n\n{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' %}{% if m.thinking and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>{% else %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant<|message|>"
    "{{ m.content | tojson }}<|end|>{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
).replace("{% for m", "{% for t in tools or [] %}<|tool|>{{ t | tojson }}{% endfor %}{% for m", 1)
#: Gemma: no system turn, the assistant has another name.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
#: Mistral: strict alternation, no mark before an answer, ids of tool calls required.
STRICT = (
    "{{ bos_token }}{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
    "{% set ns = namespace(user=true) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if not ns.user %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.user = false %}[INST] {{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
    "{% if m.tool_calls %}[TOOL_CALLS]{{ m.tool_calls | tojson }}</s>{% else %}"
    "{% if ns.user %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.user = true %} {{ m.content | trim }}</s>{% endif %}{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    "[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %}"
    "{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
#: Qwen2.5, Hermes: tools in the system turn, calls as tagged JSON, results in a user turn.
TOOLS = (
    "{% set first = messages[0].content if messages[0].role == 'system' else 'You help.' %}"
    "<|im_start|>system\n{{ first }}{% if tools %}\n\n# Tools\n{% for t in tools %}"
    "{{ t | tojson }}\n{% endfor %}{% endif %}<|im_end|>\n{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% elif m.role == 'tool' %}<|im_start|>user\n"
    "<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role != 'system' or not loop.first %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: GLM: nothing ends a turn but the next mark.
UNENDED = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
#: DeepSeek-V3.1: the thinking block of a plain answer is closed in the prompt.
CLOSED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1] %}"
    "<|Assistant|></think>{{ content }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|></think>{% endif %}"
)
#: Templates that leave out turns without a word: neither system nor tool turns.
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}"
    "{% elif m.role == 'assistant' %}[A]{{ m.content }}[E]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[A]{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "dated": DATED,
    "distilled": DISTILLED,
    "thinking": THINKING,
    "opened": OPENED,
    "questioning": QUESTIONING,
    "switched": SWITCHED,
    "channels": CHANNELS,
    "no system": NO_SYSTEM,
    "strict": STRICT,
    "tools": TOOLS,
    "unended": UNENDED,
    "closed": CLOSED,
    "forgetful": FORGETFUL,
}
