"""The official OpenAI client against a running `make serve`: python examples/openai_client.py [base
URL] [model].
"""

import sys

from openai import OpenAI

url, model = (*sys.argv[1:], *("http://127.0.0.1:8000/v1", "demo")[len(sys.argv) - 1 :])
client = OpenAI(base_url=url, api_key="unused")
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Tell me a short story."},
]
for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=64, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
