// Markdown into elements, while the text still grows.
//
// marked only cuts the text into tokens. Elements are made of them one by one, so that nothing a model
// writes is ever parsed as HTML; tags stay visible as text. Images become links: loading one would tell its
// server of the conversation.
//
// Only the last block of a growing text can still change. Blocks before it are given up as soon as the next
// one is certain, and within the last block what has not changed keeps its elements.

import { Lexer } from "./vendor/marked.js";
import { copyButton, h } from "./dom.js";

/** A paragraph so short may turn out to be the next item of the list before it: "2" of "2. Second". */
const UNCERTAIN = 16;

export class Markdown {
  constructor(root) {
    this.root = root;
    /** The text from the first block that may change. */
    this.tail = "";
    /** Blocks before it. */
    this.closed = 0;
    /** Targets of reference links, which may stand in any block. */
    this.links = Object.create(null);
  }

  /** Appends to the text. */
  push(text) {
    // A carriage return at the end may be half of a line break.
    this.tail = (this.tail + text).replace(/\r\n|\r(?=[^\n])/g, "\n");
    let tokens;
    try {
      const lexer = new Lexer();
      Object.assign(lexer.tokens.links, this.links);
      tokens = lexer.lex(this.tail);
      this.links = lexer.tokens.links;
    } catch {
      // Nested too deeply for the lexer.
      tokens = [{ type: "plain", raw: this.tail, text: this.tail }];
    }
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    reconcile(this.root, this.closed, blocks, block);
    const last = blocks.at(-1);
    if (last && (last.raw.includes("\n") || last.raw.length > UNCERTAIN)) {
      const before = tokens.slice(0, tokens.indexOf(last));
      const raw = before.map((token) => token.raw).join("");
      // Where marked has joined tokens, their text may not be the source's.
      if (this.tail.startsWith(raw)) {
        this.tail = this.tail.slice(raw.length);
        this.closed += blocks.length - 1;
      }
    }
  }
}

/** What each element was made of. */
const sources = new WeakMap();

/** Makes the children of `parent` from `start` on those of `tokens`; what is the same stays. */
function reconcile(parent, start, tokens, make) {
  tokens.forEach((token, i) => {
    const old = parent.children[start + i];
    const before = old && sources.get(old);
    if (before?.raw === token.raw && before.type === token.type && before.loose === token.loose) return;
    if (before && patch(old, before, token)) {
      sources.set(old, token);
      return;
    }
    let made;
    try {
      made = make(token);
    } catch {
      // Nested too deeply for the stack.
      made = h("pre", { class: "plain" }, token.raw);
    }
    sources.set(made, token);
    if (old) old.replaceWith(made);
    else parent.append(made);
  });
  while (parent.children.length > start + tokens.length) parent.lastElementChild.remove();
}

/** Turns the element of `before` into that of `token`, where only its end differs. */
function patch(element, before, token) {
  if (before.type !== token.type) return false;
  if (token.type === "list" && before.ordered === token.ordered && before.start === token.start) {
    reconcile(element, 0, items(token), item);
    return true;
  }
  if (token.type === "code" && before.lang === token.lang) {
    const text = element.querySelector("code").firstChild;
    if (token.text.startsWith(text.data)) text.appendData(token.text.slice(text.data.length));
    else text.data = token.text;
    return true;
  }
  return false;
}

const items = (list) => list.items.map((token) => ({ ...token, loose: list.loose }));

function block(token) {
  switch (token.type) {
    case "paragraph":
    case "text":
      return h("p", {}, ...inlines(token.tokens, token.text));
    case "heading":
      // The page has its own first two levels.
      return h(`h${Math.min(token.depth + 2, 6)}`, {}, ...inlines(token.tokens));
    case "code":
      return code(token);
    case "blockquote":
      return h("blockquote", {}, ...blocks(token.tokens));
    case "list": {
      const start = token.ordered && token.start !== 1 ? token.start : undefined;
      const list = h(token.ordered ? "ol" : "ul", { start });
      reconcile(list, 0, items(token), item);
      return list;
    }
    case "table":
      return table(token);
    case "hr":
      return h("hr");
    default:
      return h("p", { class: "plain" }, token.raw.trimEnd());
  }
}

const blocks = (tokens) =>
  tokens.filter((token) => token.type !== "space" && token.type !== "def").map(block);

function item(token) {
  const li = h("li", {});
  for (const part of token.tokens) {
    if (part.type === "space" || part.type === "def") continue;
    else if (part.type === "checkbox") li.append(checkbox(part));
    else if (part.type === "text" && !token.loose) li.append(...inlines(part.tokens, part.text));
    else li.append(block(part));
  }
  return li;
}

function code(token) {
  const lang = token.lang?.split(/\s/)[0] ?? "";
  const text = document.createTextNode(token.text);
  const label = lang ? `Code, ${lang}` : "Code";
  return h(
    "figure",
    { class: "code" },
    h("figcaption", {}, h("span", {}, lang || "text"), copyButton("Copy code", () => text.data)),
    h("pre", { tabindex: "0", role: "region", "aria-label": label }, h("code", {}, text)),
  );
}

function table(token) {
  const cell = (tag, cell) =>
    h(tag, { class: cell.align ? `align-${cell.align}` : undefined }, ...inlines(cell.tokens));
  const row = (cells, tag) => h("tr", {}, ...cells.map((c) => cell(tag, c)));
  return h(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    h(
      "table",
      {},
      h("thead", {}, row(token.header, "th")),
      h("tbody", {}, ...token.rows.map((cells) => row(cells, "td"))),
    ),
  );
}

function checkbox(token) {
  const box = h("input", { type: "checkbox", disabled: true, "aria-label": token.checked ? "done" : "not done" });
  box.checked = token.checked;
  return box;
}

const inlines = (tokens, text = "") => tokens?.map(inline) ?? [decode(text)];

function inline(token) {
  switch (token.type) {
    case "text":
      return token.tokens ? span(token.tokens) : decode(token.text);
    case "escape":
      return token.text;
    case "strong":
    case "em":
    case "del":
      return h(token.type, {}, ...inlines(token.tokens));
    case "codespan":
      return h("code", {}, token.text);
    case "br":
      return h("br");
    case "checkbox":
      return checkbox(token);
    case "link":
      return link(token.href, inlines(token.tokens, token.text), token.raw);
    case "image":
      return link(token.href, [token.text || token.href], token.raw);
    case "html":
      return /^<br\s*\/?>$/i.test(token.raw) ? h("br") : token.raw;
    default:
      return token.raw;
  }
}

const span = (tokens) => h("span", {}, ...inlines(tokens));

/** A link to the web or to a mail address; any other stays as it was written. */
function link(href, content, raw) {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return raw;
  return h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...content);
}

const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", deg: "°",
  plusmn: "±", times: "×", divide: "÷", middot: "·", bull: "•", hellip: "…", ndash: "–", mdash: "—",
  lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", larr: "←", rarr: "→",
  uarr: "↑", darr: "↓", le: "≤", ge: "≥", ne: "≠", asymp: "≈", infin: "∞", pi: "π", euro: "€",
};

/** Resolves the entities that people write; others stay as they are. */
function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]+));/gi, (whole, decimal, hex, name) => {
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : whole;
    const point = decimal ? Number.parseInt(decimal, 10) : Number.parseInt(hex, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : "\ufffd";
  });
}
