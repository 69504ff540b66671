// The server's API, and its failures in words.

/** What went wrong, for the person who reads it. */
export class Failure extends Error {
  /** `kind`: "offline", "key", "busy", "long", "broken" or "other"; `wait`: seconds until it may work. */
  constructor(kind, title, detail = "", wait = 0) {
    super(title);
    Object.assign(this, { kind, title, detail, wait });
  }
}

const offline = () =>
  new Failure("offline", "The server cannot be reached.", "Is it still running, and is this machine connected?");

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

/** The names of the models. */
export async function models(key) {
  const reply = await send("v1/models", { headers: headers(key), cache: "no-store" });
  const list = await reply.json();
  return list.data.map((model) => model.id);
}

/** The chunks of a streamed chat completion. Ends only if the answer is complete; else it throws. */
export async function* chat(body, key, signal) {
  const reply = await send("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw described(chunk.error, 0, 0);
    yield chunk;
  }
  throw new Failure("broken", "The connection broke before the answer was complete.");
}

async function send(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : offline();
  }
  if (reply.ok) return reply;
  const text = await reply.text().catch(() => "");
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    error.message = text.slice(0, 500);
  }
  const wait = Number.parseInt(reply.headers.get("Retry-After") ?? "", 10) || 0;
  throw described(error, reply.status, wait);
}

function described(error, status, wait) {
  const detail = (typeof error === "string" ? error : error.message) ?? "";
  if (status === 401 || status === 403)
    return new Failure("key", "The server asks for an API key.", "The key is missing or wrong.");
  if (status === 429) return new Failure("busy", "The server is busy.", detail, wait || 1);
  if (status === 503) return new Failure("busy", "The server is not ready.", detail, wait || 1);
  if (error.code === "context_length_exceeded")
    return new Failure("long", "The conversation is too long for the model.", detail);
  if (status === 413) return new Failure("long", "The conversation is too long for the server.", detail);
  if (status >= 500) return new Failure("other", `The server failed (${status}).`, detail);
  if (status) return new Failure("other", `The server refused the request (${status}).`, detail);
  return new Failure("broken", "The answer was broken off.", detail);
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let result;
      try {
        result = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Failure("broken", "The connection broke before the answer was complete.");
      }
      if (result.done) return;
      const lines = (rest + result.value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
