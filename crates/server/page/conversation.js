// A conversation: a tree of messages, of which one path is shown.
//
// A question that was edited and an answer that was written again stand beside their former versions, as
// children of the same message. `leaf` is the end of the path that is shown.

export const SETTINGS = ["system", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

/** An id. crypto.randomUUID exists only over HTTPS and on the same machine. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

export function create(settings = {}, model = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, model, settings: { ...settings }, messages: [], leaf: null };
}

/** Adds a message below `parent` and shows it. */
export function add(conversation, parent, role, content = "") {
  const message = { id: newId(), parent, role, content, created: Date.now() };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = message.created;
  if (role === "user" && !conversation.title) {
    const line = content.trim().split("\n", 1)[0];
    conversation.title = line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
  }
  return message;
}

/** Takes away a message that nothing follows. */
export function discard(conversation, message) {
  conversation.messages = conversation.messages.filter((other) => other !== message);
  conversation.leaf = message.parent;
}

/** The messages that are shown, the first one first. */
export function path(conversation, leaf = conversation.leaf) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const messages = [];
  for (let message = byId.get(leaf); message; message = byId.get(message.parent)) messages.push(message);
  return messages.reverse();
}

/** All versions of a message, itself included, in the order in which they were made. */
export function versions(conversation, message) {
  return conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);
}

/** Shows a version, and what was last said after it. */
export function show(conversation, message) {
  let leaf = message;
  for (let next = leaf; next; next = conversation.messages.findLast((m) => m.parent === leaf.id)) leaf = next;
  conversation.leaf = leaf.id;
}

/** What the server is asked, to get an answer to the message `leaf`. */
export function request(conversation, leaf) {
  const { system, ...settings } = conversation.settings;
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { role, content } of path(conversation, leaf)) {
    // Answers of which nothing came. Templates want questions and answers by turns.
    if (role === "assistant" && !content) continue;
    const last = messages.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  const body = { messages, ...settings };
  if (conversation.model) body.model = conversation.model;
  return body;
}

export const exported = (conversations) =>
  JSON.stringify({ format: "hurtle-conversations", version: 1, conversations }, null, 2);

/** Reads what `exported` wrote, and takes from it only what has the right shape. */
export function imported(text) {
  const wrong = (what) => new Error(`This file holds no conversations of hurtle: ${what}.`);
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw wrong("it is not JSON");
  }
  if (file?.format !== "hurtle-conversations" || file.version !== 1 || !Array.isArray(file.conversations))
    throw wrong('"format" is not "hurtle-conversations" of version 1');
  return file.conversations.map((conversation, i) => {
    const read = readConversation(conversation);
    if (!read) throw wrong(`conversation ${i + 1} is damaged`);
    return read;
  });
}

const isText = (value) => typeof value === "string";
const number = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);

function readConversation(from) {
  if (!isText(from?.title) || !Array.isArray(from.messages)) return null;
  const out = create({}, isText(from.model) ? from.model : "");
  out.title = from.title.slice(0, 200);
  out.created = number(from.created, out.created);
  out.updated = number(from.updated, out.updated);
  for (const name of SETTINGS) {
    const value = from.settings?.[name];
    if (name === "system" ? isText(value) : Number.isFinite(value)) out.settings[name] = value;
  }
  const known = new Set();
  for (const message of from.messages) {
    const { id, parent, role, content } = message ?? {};
    // A parent comes before its children, so that there are no circles.
    const fits = isText(id) && isText(content) && !known.has(id) && (parent === null || known.has(parent));
    if (!fits || (role !== "user" && role !== "assistant")) return null;
    known.add(id);
    const read = { id, parent, role, content, created: number(message.created, out.created) };
    if (isText(message.reasoning)) read.reasoning = message.reasoning;
    if (isText(message.model)) read.model = message.model;
    if (isText(message.ending)) read.ending = message.ending;
    if (Array.isArray(message.calls) && message.calls.every((c) => isText(c?.name) && isText(c.arguments)))
      read.calls = message.calls.map((call) => ({ name: call.name, arguments: call.arguments }));
    out.messages.push(read);
  }
  if (known.has(from.leaf)) out.leaf = from.leaf;
  else if (out.messages.length) show(out, out.messages[0]);
  return out;
}
