// The chat page: what the buttons do, and answers on their way from the server to the page.

import * as api from "./api.js";
import * as conversations from "./conversation.js";
import { announce, h, iconButton } from "./dom.js";
import { Answer, Question, fit, sends } from "./message.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);
const ui = Object.fromEntries(
  [
    "sidebar", "backdrop", "menu", "new", "conversations", "export", "import", "import-file", "theme", "model",
    "settings-open", "banner", "log", "messages", "empty", "to-end", "composer", "question", "send", "stop",
    "title", "settings", "settings-reset", "settings-cancel", "key", "rename", "rename-name", "delete", "delete-name",
  ].map((id) => [id, $(id)]),
);

/** All conversations by their ids. */
const all = new Map();
/** The one that is shown. It is kept from its first question on. */
let current = conversations.create();
/** Answers that are being written, by the ids of their conversations. */
const writing = new Map();
/** Messages on the page. */
let views = [];
let models = [];
let key = store.preference("key") ?? "";

// Answers

/** An answer being written. */
class Writing {
  constructor(message) {
    this.message = message;
    this.controller = new AbortController();
    this.started = performance.now();
    this.first = undefined;
    this.tokens = 0;
  }

  /** A chunk with text has come. */
  count() {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens += 1;
  }

  stats() {
    if (this.first === undefined) return { waiting: performance.now() - this.started };
    const seconds = (this.last - this.first) / 1000;
    // The first token ends the prompt; the rate is that of those after it.
    const rate = this.rate ?? (seconds > 0 ? (this.tokens - 1) / seconds : undefined);
    return { tokens: this.tokens, rate, firstMs: this.first - this.started };
  }
}

/** Has the message `parent` answered. */
async function answer(conversation, parent) {
  if (writing.has(conversation.id)) return;
  const body = conversations.request(conversation, parent.id);
  const message = conversations.add(conversation, parent.id, "assistant");
  message.model = conversation.model;
  // Until it is complete, in case the page is closed before.
  message.ending = "open";
  const live = new Writing(message);
  writing.set(conversation.id, live);
  if (conversation === current) {
    render();
    toEnd();
  }
  list();
  announce("The answer is being written");
  try {
    for await (const chunk of api.chat(body, key, live.controller.signal)) {
      take(chunk, live);
      changed(conversation, message);
    }
    if (message.ending === "open") delete message.ending;
  } catch (error) {
    delete message.ending;
    if (error.name === "AbortError") message.ending = "stopped";
    else message.error = failure(error);
  }
  if (live.first !== undefined) message.stats = live.stats();
  writing.delete(conversation.id);
  conversation.updated = Date.now();
  keep(conversation);
  changed(conversation, message);
  view(message)?.update();
  controls();
  if (conversation !== current) announce(`The answer in ${conversation.title} is complete`);
  else announce(message.error?.title ?? (view(message)?.text.textContent || "The answer is empty"));
}

function failure(error) {
  const { kind = "other", title = "The page failed.", detail = String(error), wait } = error;
  return { kind, title, detail, until: wait ? Date.now() + wait * 1000 : undefined };
}

/** Takes a chunk of a stream into its message. */
function take(chunk, live) {
  const { message } = live;
  const choice = chunk.choices?.[0];
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice?.delta ?? {};
  if (content || reasoning || calls) live.count();
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  if (content) {
    if (message.reasoning && !message.content) message.thinkingMs = live.last - live.first;
    message.content += content;
  }
  for (const call of calls ?? []) {
    message.calls ??= [];
    const known = (message.calls[call.index ?? 0] ??= { name: "", arguments: "" });
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
  if (choice?.finish_reason === "length") message.ending = "length";
  // The server counts and times better than its chunks do.
  if (chunk.usage) live.tokens = chunk.usage.completion_tokens;
  live.rate = chunk.timings?.predicted_per_second ?? live.rate;
}

const dirty = new Set();
let scheduled = false;
let saved = 0;

/** Something of a message has changed: it is painted with the next frame, and saved once in a while. */
function changed(conversation, message) {
  if (conversation === current) dirty.add(message);
  if (Date.now() - saved > 1000) keep(conversation);
  if (scheduled) return;
  scheduled = true;
  // Frames are not painted in tabs that nobody sees; these catch up later.
  requestAnimationFrame(() => {
    scheduled = false;
    const follow = atEnd;
    for (const message of dirty) view(message)?.update();
    dirty.clear();
    if (follow) toEnd();
  });
}

function keep(conversation) {
  // It may have been deleted while its answer was being written.
  if (all.get(conversation.id) !== conversation) return;
  saved = Date.now();
  store.save(conversation).catch((error) => banner(`Conversations cannot be saved in this browser: ${error.message}`));
}

// What messages can do

const actions = {
  versions: (message) => conversations.versions(current, message),
  live: (message) => {
    const live = writing.get(current.id);
    return live?.message === message ? live : undefined;
  },
  show(message) {
    conversations.show(current, message);
    keep(current);
    render();
  },
  edited(message, text) {
    if (writing.has(current.id)) return;
    const parent = message.parent;
    const edited = conversations.add(current, parent, "user", text);
    answer(current, edited);
    focusComposer();
  },
  again(message) {
    if (writing.has(current.id)) return;
    const question = current.messages.find((other) => other.id === message.parent);
    if (!message.content && !current.messages.some((other) => other.parent === message.id))
      conversations.discard(current, message);
    answer(current, question);
    focusComposer();
  },
  enterKey: () => openSettings(ui.key),
};

// Showing a conversation

const view = (message) => views.find((view) => view.message === message);

/** Brings the page in line with the conversation; messages that are shown already stay. */
function render() {
  const shown = conversations.path(current);
  let same = 0;
  while (same < views.length && views[same].message === shown[same]) same += 1;
  for (const view of views.splice(same)) view.element.remove();
  for (const view of views) {
    view.refresh();
    view.update?.();
  }
  for (const message of shown.slice(same)) {
    const made = message.role === "user" ? new Question(message, actions) : new Answer(message, actions);
    views.push(made);
    ui.messages.append(made.element);
  }
  ui.empty.hidden = shown.length > 0;
  ui.title.textContent = current.title || "New conversation";
  document.title = current.title ? `${current.title} – hurtle` : "hurtle";
  controls();
}

/** The buttons that depend on whether an answer is being written. */
function controls() {
  const busy = writing.has(current.id);
  ui.stop.hidden = !busy;
  ui.send.hidden = busy;
  ui.messages.classList.toggle("busy", busy);
}

function open(conversation) {
  if (conversation !== current) {
    current = conversation;
    views = [];
    ui.messages.replaceChildren();
  }
  const hash = all.has(current.id) ? `#${current.id}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname);
  render();
  showModel();
  list();
  toEnd();
}

/** The conversations in the sidebar, the latest first. */
function list() {
  const focused = document.activeElement?.closest("[data-id]")?.dataset.id;
  const latest = [...all.values()].sort((a, b) => b.updated - a.updated);
  ui.conversations.replaceChildren(
    ...latest.map((conversation) => {
      const title = conversation.title || "Untitled";
      const here = conversation === current;
      const button = h("button", {
        type: "button", class: "title", title, "aria-current": here ? "page" : undefined,
        click: () => {
          open(conversation);
          drawer(false);
          focusComposer();
        },
      }, title);
      return h("li", { class: here ? "here" : undefined, "data-id": conversation.id },
        button,
        iconButton("edit", `Rename ${title}`, () => rename(conversation)),
        iconButton("trash", `Delete ${title}`, () => erase(conversation)));
    }),
  );
  if (focused) ui.conversations.querySelector(`[data-id="${focused}"] .title`)?.focus();
}

function startNew() {
  if (current.messages.length) open(conversations.create(current.settings, current.model));
  drawer(false);
  ui.question.focus();
}

// Asking

function ask() {
  const text = ui.question.value.trim();
  if (!text || writing.has(current.id)) return;
  ui.question.value = "";
  fit(ui.question);
  const question = conversations.add(current, current.leaf, "user", text);
  if (!all.has(current.id)) {
    all.set(current.id, current);
    history.pushState(null, "", `#${current.id}`);
  }
  keep(current);
  answer(current, question);
}

const stop = () => writing.get(current.id)?.controller.abort();

/** On a phone the keyboard would hide what there is to read. */
function focusComposer() {
  if (!matchMedia("(pointer: coarse)").matches) ui.question.focus();
}

// Following the text while it grows, unless the reader has scrolled up

let atEnd = true;

function toEnd() {
  ui.log.scrollTop = ui.log.scrollHeight;
  atEnd = true;
  ui["to-end"].hidden = true;
}

ui.log.addEventListener("scroll", () => {
  atEnd = ui.log.scrollHeight - ui.log.scrollTop - ui.log.clientHeight < 40;
  ui["to-end"].hidden = atEnd;
}, { passive: true });

// Models

async function loadModels() {
  try {
    models = await api.models(key);
    banner("");
  } catch (error) {
    models = [];
    const button = error.kind === "key"
      ? h("button", { type: "button", click: () => openSettings(ui.key) }, "Enter the key")
      : h("button", { type: "button", click: loadModels }, "Try again");
    banner(error.kind ? error.title : String(error), button);
  }
  showModel();
}

/** The name of a file without its folder. */
const short = (name) => (/\.gguf$/i.test(name) ? name.split(/[/\\]/).at(-1).slice(0, -5) : name);

function showModel() {
  if (!current.model) current.model = store.preference("model") ?? "";
  if (models.length && !models.includes(current.model)) current.model = models[0];
  const names = models.length ? models : [current.model || "no model"];
  ui.model.replaceChildren(...names.map((name) => h("option", { value: name, title: name }, short(name))));
  ui.model.value = current.model || names[0];
  ui.model.disabled = !models.length;
}

function banner(text, ...buttons) {
  ui.banner.hidden = !text;
  ui.banner.replaceChildren(...(text ? [h("span", {}, text), ...buttons] : []));
}

// Dialogs

/** Opens a dialog and waits for its end; whether its form was sent. */
function dialog(element, focus) {
  return new Promise((resolve) => {
    element.returnValue = "";
    element.addEventListener("close", () => resolve(element.returnValue === "sent"), { once: true });
    element.showModal();
    focus?.focus();
    focus?.select?.();
  });
}

for (const element of document.querySelectorAll("dialog")) {
  for (const button of element.querySelectorAll("[data-close]")) button.addEventListener("click", () => element.close());
  element.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    element.close("sent");
  });
  // A click beside it.
  element.addEventListener("click", (event) => {
    if (event.target === element) element.close();
  });
}

async function openSettings(focus) {
  for (const name of conversations.SETTINGS) $(name).value = current.settings[name] ?? "";
  ui.key.value = key;
  if (!(await dialog(ui.settings, focus))) return;
  current.settings = {};
  for (const name of conversations.SETTINGS) {
    const text = $(name).value.trim();
    if (text) current.settings[name] = name === "system" ? text : Number(text);
  }
  store.setPreference("settings", JSON.stringify(current.settings));
  if (all.has(current.id)) keep(current);
  if (ui.key.value === key) return;
  key = ui.key.value;
  store.setPreference("key", key);
  await loadModels();
  const last = views.at(-1)?.message;
  if (models.length && last?.error?.kind === "key") actions.again(last);
}

ui["settings-cancel"].addEventListener("click", () => ui.settings.close());
ui["settings-reset"].addEventListener("click", () => {
  for (const name of conversations.SETTINGS) $(name).value = "";
});

async function rename(conversation) {
  ui["rename-name"].value = conversation.title;
  if (!(await dialog(ui.rename, ui["rename-name"]))) return;
  conversation.title = ui["rename-name"].value.trim() || conversation.title;
  keep(conversation);
  list();
  render();
}

async function erase(conversation) {
  ui["delete-name"].textContent = conversation.title;
  if (!(await dialog(ui.delete))) return;
  writing.get(conversation.id)?.controller.abort();
  forget(conversation.id);
  await store.remove(conversation.id);
  announce("Deleted");
}

function forget(id) {
  const conversation = all.get(id);
  all.delete(id);
  if (conversation === current) open(conversations.create(current.settings, current.model));
  else list();
}

// Files

function download(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

ui.export.addEventListener("click", () => {
  const today = new Date().toISOString().slice(0, 10);
  download(conversations.exported([...all.values()]), `hurtle-conversations-${today}.json`);
});
ui.import.addEventListener("click", () => ui["import-file"].click());
ui["import-file"].addEventListener("change", async () => {
  const [file] = ui["import-file"].files;
  if (!file) return;
  try {
    const read = conversations.imported(await file.text());
    for (const conversation of read) {
      all.set(conversation.id, conversation);
      keep(conversation);
    }
    banner("");
    announce(`${read.length} conversations imported`);
    list();
  } catch (error) {
    banner(error.message);
  }
  ui["import-file"].value = "";
});

// Theme

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  const dark = (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const label = dark ? "Light theme" : "Dark theme";
  ui.theme.title = label;
  ui.theme.setAttribute("aria-label", label);
  return dark;
}

ui.theme.addEventListener("click", () => {
  const theme = showTheme() ? "light" : "dark";
  // Where the system wants the same, it is followed from now on.
  const follow = (theme === "dark") === prefersDark.matches;
  store.setPreference("theme", follow ? "" : theme);
  if (follow) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  showTheme();
});
prefersDark.addEventListener("change", showTheme);

// The sidebar, which lies over the page where that is narrow

const narrow = matchMedia("(max-width: 760px)");

function drawer(shown) {
  ui.sidebar.classList.toggle("shown", shown);
  ui.sidebar.inert = narrow.matches && !shown;
  ui.backdrop.hidden = !shown;
  ui.menu.setAttribute("aria-expanded", String(shown));
}

ui.menu.addEventListener("click", () => {
  drawer(true);
  ui.new.focus();
});
ui.backdrop.addEventListener("click", () => drawer(false));
narrow.addEventListener("change", () => drawer(false));

// Keys and buttons

ui.new.addEventListener("click", startNew);
ui["settings-open"].addEventListener("click", () => openSettings());
ui["to-end"].addEventListener("click", () => {
  toEnd();
  ui.log.focus();
});
ui.stop.addEventListener("click", () => {
  stop();
  focusComposer();
});
ui.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
ui.question.addEventListener("input", () => fit(ui.question));
ui.question.addEventListener("keydown", (event) => {
  if (sends(event)) {
    event.preventDefault();
    ask();
  }
});
ui.model.addEventListener("change", () => {
  current.model = ui.model.value;
  store.setPreference("model", current.model);
  if (all.has(current.id)) keep(current);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (ui.sidebar.classList.contains("shown")) {
    drawer(false);
    ui.menu.focus();
  } else stop();
});
window.addEventListener("popstate", () => {
  open(all.get(location.hash.slice(1)) ?? conversations.create(current.settings, current.model));
});
window.addEventListener("pagehide", () => {
  for (const id of writing.keys()) keep(all.get(id));
});
// Rates and waiting times go on while no text comes.
setInterval(() => {
  const live = writing.get(current.id);
  if (live) changed(current, live.message);
}, 500);

// Another tab has changed a conversation. What is being written here is not overwritten.
store.onChange((id, conversation) => {
  if (writing.has(id)) return;
  if (!conversation) return forget(id);
  all.set(id, conversation);
  if (id === current.id) open(conversation);
  else list();
});

async function start() {
  drawer(false);
  showTheme();
  fit(ui.question);
  try {
    for (const conversation of await store.loadAll()) all.set(conversation.id, conversation);
  } catch (error) {
    banner(`Conversations cannot be kept in this browser: ${error.message}`);
  }
  try {
    current.settings = JSON.parse(store.preference("settings") ?? "{}");
  } catch {
    // Another program's: the server's settings hold.
  }
  open(all.get(location.hash.slice(1)) ?? current);
  await loadModels();
  focusComposer();
}

start();
