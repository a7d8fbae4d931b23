"""Meters the tokens of an LLM: `metered` wraps any call whose answer has `usage`, as OpenAI's has."""

from __future__ import annotations

import functools
from typing import Any

from agent.client import Client

events = Client()


def metered(call: Any, vendor: str, customer: str) -> Any:
    """Return `call` (such as `openai.OpenAI().chat.completions.create`), metered for one customer."""

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        answer = call(*args, **kwargs)
        usage = answer.usage
        llm = {
            "vendor": vendor,
            "model": answer.model,
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
        events.send("ai_usage", external_customer_id=customer, external_id=answer.id, metadata={"_llm": llm})
        return answer

    return wrapper
