"""The OpenAI client, against an app that speaks chat completions and responses.

And against what stands in for OpenAI's moderations in other tests: so that is what the client reads.
"""

from collections.abc import Iterator

import pytest

from tests.guardrail_services.speaking import CATEGORIES, FORBIDDEN, SECRET, OpenAISpeaking
from tests.support.servers import serve

from .cases import TEXT
from .models import ModelPromises
from .stage import PATIENCE

pytest.importorskip("openai", reason="the OpenAI client is not installed: pip install '.[compat]'")

import openai


class TestOpenAI(ModelPromises):
    error = openai.OpenAIError
    dialects = ("chat", "responses")

    def read(self, url: str, dialect: str, *, stream: bool) -> Iterator[str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=PATIENCE) as client:
            match dialect, stream:
                case "chat", True:
                    for chunk in client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": TEXT}], stream=True
                    ):
                        yield chunk.choices[0].delta.content or ""
                case "chat", False:
                    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": TEXT}])
                    yield answer.choices[0].message.content or ""
                case "responses", True:
                    for event in client.responses.create(model="m", input=TEXT, stream=True):
                        if event.type == "response.output_text.delta":
                            yield event.delta
                case "responses", False:
                    yield client.responses.create(model="m", input=TEXT).output_text


def test_the_stand_in_for_moderations_answers_as_the_client_expects() -> None:
    with (
        serve(OpenAISpeaking()) as url,
        openai.OpenAI(base_url=f"{url}v1", api_key=SECRET, max_retries=0, timeout=PATIENCE) as client,
    ):
        answer = client.moderations.create(model="omni-moderation-latest", input=f"a {FORBIDDEN} word")
    [result] = answer.results
    assert result.flagged
    categories = result.categories.model_dump(by_alias=True)
    assert {name for name, flagged in categories.items() if flagged} == {"violence"}
    assert set(CATEGORIES) == set(categories) == set(result.category_scores.model_dump(by_alias=True))
