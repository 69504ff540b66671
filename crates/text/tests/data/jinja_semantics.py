"""Writes the expected texts of jinja_semantics.json (null: an error) with Python's jinja2, in the
environment of Hugging Face's apply_chat_template. Run it after adding a case; needs jinja2 3.1.6."""

import datetime
import json
import pathlib

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2025, 3, 14, 9, 26, 53)


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("render"), [], [], body).set_lineno(line)

    def render(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


env = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = NOW.strftime


def expected(template, variables):
    try:
        return env.from_string(template).render(
            bos_token="<B>", eos_token="<E>", messages=[], tools=None,
            add_generation_prompt=False, **variables
        )
    except Exception:
        return None


path = pathlib.Path(__file__).with_suffix(".json")
data = json.loads(path.read_text())
rows = [json.dumps([t, expected(t, data["variables"])], ensure_ascii=False) for t, _ in data["cases"]]
variables = json.dumps(data["variables"], ensure_ascii=False)
path.write_text('{"variables": ' + variables + ',\n"cases": [\n' + ",\n".join(rows) + "\n]}\n")
