"""Talks to a server as the Python packages openai, ollama and litellm do: clients.py ADDRESS MODEL."""

import json
import sys

import litellm
import ollama
import openai

ADDRESS, MODEL = sys.argv[1], sys.argv[2]
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
PERSON_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": PERSON, "strict": True},
}


def check_person(text):
    person = json.loads(text)
    assert sorted(person) == ["age", "name"], person
    assert 0 <= person["age"] <= 120, person


def check_call(call):
    assert call.function.name == "get_weather", call
    assert list(json.loads(call.function.arguments)) == ["city"], call


def by_openai():
    client = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="none", max_retries=0, timeout=100)
    assert MODEL in [model.id for model in client.models.list()]

    common = {"model": MODEL, "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**common, max_tokens=12)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason in ("stop", "length"), whole
    assert whole.usage.completion_tokens <= 12, whole.usage

    stream = client.chat.completions.create(
        **common, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    pieces, usage = [], None
    for chunk in stream:
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == text, (pieces, text)
    assert usage.completion_tokens == whole.usage.completion_tokens, usage

    logprobs = client.chat.completions.create(**common, max_tokens=3, logprobs=True, top_logprobs=2)
    for token in logprobs.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2, token

    several = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=4, n=2, seed=1, temperature=1
    )
    assert [choice.index for choice in several.choices] == [0, 1], several

    answer = client.chat.completions.create(**common, max_tokens=80, response_format=PERSON_FORMAT)
    check_person(answer.choices[0].message.content)

    answer = client.chat.completions.create(
        **common, max_tokens=80, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    [call] = answer.choices[0].message.tool_calls
    check_call(call)

    completion = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=4)
    assert completion.choices[0].text, completion
    response = client.responses.create(model=MODEL, input="Hello", max_output_tokens=16)
    assert response.output_text, response

    try:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    except openai.NotFoundError as error:
        assert "no-such-model" in str(error), error
    else:
        raise AssertionError("a model that is not there answers")
    try:
        client.chat.completions.create(**common, max_tokens=1, extra_body={"no_such_parameter": 1})
    except openai.BadRequestError as error:
        assert "no_such_parameter" in str(error), error
    else:
        raise AssertionError("an unknown parameter is taken")


def by_ollama():
    client = ollama.Client(host=ADDRESS, timeout=100)
    assert any(MODEL in model.model for model in client.list().models)
    options = {"temperature": 0, "num_predict": 12}
    whole = client.chat(model=MODEL, messages=QUESTION, options=options)
    assert whole.message.content and whole.done and whole.eval_count <= 12, whole
    pieces = client.chat(model=MODEL, messages=QUESTION, options=options, stream=True)
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    options["num_predict"] = 80
    person = client.chat(model=MODEL, messages=QUESTION, format=PERSON, options=options)
    check_person(person.message.content)
    assert client.generate(model=MODEL, prompt="The sky is", options=options).response
    assert client.show(MODEL).details.format == "gguf"
    try:
        client.chat(model="no-such-model", messages=QUESTION)
    except ollama.ResponseError as error:
        assert error.status_code == 404, error
    else:
        raise AssertionError("a model that is not there answers")


def by_litellm():
    texts = set()
    for provider, base in [
        ("openai", f"{ADDRESS}/v1"),
        ("ollama_chat", ADDRESS),
        ("anthropic", ADDRESS),
    ]:
        common = {
            "model": f"{provider}/{MODEL}",
            "api_base": base,
            "api_key": "none",
            "messages": QUESTION,
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = litellm.completion(**common)
        texts.add(whole.choices[0].message.content)
        stream = litellm.completion(**common, stream=True)
        texts.add("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    # Whatever the API, it is the same model and the same text.
    assert len(texts) == 1 and texts != {""}, texts
    called = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{ADDRESS}/v1",
        api_key="none",
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=80,
        temperature=0,
    )
    check_call(called.choices[0].message.tool_calls[0])


for check in (by_openai, by_ollama, by_litellm):
    check()
    print("ok", check.__name__)
