// Messages on the page.

import { copyButton, h, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";

/** What a message has in common: `actions.show(message)`, `actions.versions(message)` for its versions. */
class View {
  constructor(message, actions, label, kind) {
    this.message = message;
    this.actions = actions;
    this.versions = h("span", { class: "versions" });
    this.element = h("article", { class: kind }, h("h2", { class: "sr" }, label));
  }

  /** Shows which version this is. */
  refresh() {
    const all = this.actions.versions(this.message);
    const at = all.indexOf(this.message);
    this.versions.replaceChildren();
    if (all.length < 2) return;
    const step = (name, label, to) => {
      const button = iconButton(name, label, () => this.actions.show(all[to]));
      button.disabled = !all[to];
      return button;
    };
    this.versions.append(
      step("left", "Former version", at - 1),
      h("span", {}, h("span", { class: "sr" }, "Version "), `${at + 1}/${all.length}`),
      step("right", "Next version", at + 1),
    );
  }
}

/** A question, which can be edited in place. */
export class Question extends View {
  constructor(message, actions) {
    super(message, actions, "You", "question");
    this.text = h("div", { class: "bubble" }, message.content);
    this.editButton = iconButton("edit", "Edit question", () => this.edit());
    this.footer = h(
      "footer", {}, this.versions, this.editButton, copyButton("Copy question", () => message.content),
    );
    this.element.append(this.text, this.footer);
    this.refresh();
  }

  edit() {
    const area = h("textarea", { "aria-label": "Question", rows: "1" });
    area.value = this.message.content;
    const grow = () => fit(area);
    const close = () => {
      form.replaceWith(this.text);
      this.footer.hidden = false;
      this.editButton.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (!text) return;
      close();
      this.actions.edited(this.message, text);
    };
    const form = h(
      "form",
      { class: "edit", submit: (event) => { event.preventDefault(); send(); } },
      area,
      h("div", { class: "buttons" },
        h("button", { type: "button", click: close }, "Cancel"),
        h("button", { type: "submit", class: "primary" }, "Send")),
    );
    area.addEventListener("input", grow);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (sends(event)) {
        event.preventDefault();
        send();
      }
    });
    this.text.replaceWith(form);
    this.footer.hidden = true;
    grow();
    area.focus();
  }
}

/** An answer, which may still be growing. */
export class Answer extends View {
  constructor(message, actions) {
    super(message, actions, "Answer", "answer");
    this.shown = 0;
    this.reasoningShown = 0;
    this.summary = h("summary", {});
    this.reasoningText = h("div", { class: "reasoning-text" });
    this.reasoning = h("details", { class: "reasoning", hidden: true }, this.summary, this.reasoningText);
    this.text = h("div", { class: "text" });
    this.markdown = new Markdown(this.text);
    this.calls = h("div", { class: "calls" });
    this.note = h("p", { class: "note", hidden: true });
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.stats = h("span", { class: "stats" });
    this.copy = copyButton("Copy answer", () => message.content);
    this.again = iconButton("again", "Answer again", () => actions.again(message));
    this.footer = h("footer", {}, this.copy, this.again, this.versions, this.stats);
    this.element.append(
      this.reasoning, this.text, this.calls, this.note, this.error, this.footer,
    );
    this.refresh();
    this.update();
  }

  /** Shows what has come since the last time. */
  update() {
    const { message } = this;
    const live = this.actions.live(message);
    this.element.setAttribute("aria-busy", String(Boolean(live)));
    this.element.classList.toggle("waiting", Boolean(live) && !message.content && !message.reasoning);
    if (message.reasoning) {
      this.reasoning.hidden = false;
      this.reasoningText.append(message.reasoning.slice(this.reasoningShown));
      this.reasoningShown = message.reasoning.length;
      const thinking = live && !message.content;
      this.summary.textContent = thinking ? "Thinking…" : thought(message.thinkingMs);
    }
    if (message.content.length > this.shown) {
      this.markdown.push(message.content.slice(this.shown));
      this.shown = message.content.length;
    }
    this.updateCalls();
    this.updateNote(live);
    this.copy.hidden = Boolean(live) || !message.content;
    this.again.hidden = Boolean(live || message.error);
    this.stats.textContent = stats(live?.stats() ?? message.stats);
    this.updateError();
  }

  updateCalls() {
    const calls = this.message.calls ?? [];
    calls.forEach((call, i) => {
      const text = this.calls.children[i]?.querySelector("pre");
      if (text) text.textContent = call.arguments;
      else
        this.calls.append(
          h("details", { class: "call" },
            h("summary", {}, "Calls ", h("code", {}, call.name)),
            h("pre", { tabindex: "0" }, call.arguments)),
        );
    });
  }

  updateNote(live) {
    const { ending, content, calls, error } = this.message;
    let note = "";
    if (ending === "length") note = "The answer ends here because it reached the most tokens that it may have.";
    else if (ending === "stopped") note = "Stopped.";
    else if (ending === "open" && !live) note = "This answer is not complete.";
    else if (!live && !content && !calls?.length && !error) note = "The model answered with nothing.";
    this.note.textContent = note;
    this.note.hidden = !note;
  }

  updateError() {
    const { error } = this.message;
    if (error === this.errorShown) return;
    this.errorShown = error;
    this.error.hidden = !error;
    this.error.replaceChildren();
    clearInterval(this.countdown);
    if (!error) return;
    const retry = h("button", { type: "button", click: () => this.actions.again(this.message) }, "Try again");
    const buttons = h("div", { class: "buttons" });
    if (error.kind === "key")
      buttons.append(h("button", { type: "button", class: "primary", click: () => this.actions.enterKey() }, "Enter the key"));
    buttons.append(retry);
    this.error.append(h("p", {}, h("strong", {}, error.title)));
    if (error.detail) this.error.append(h("p", { class: "detail" }, error.detail));
    this.error.append(buttons);
    if (error.until) {
      const tick = () => {
        const left = Math.ceil((error.until - Date.now()) / 1000);
        retry.disabled = left > 0;
        retry.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
        if (left <= 0) clearInterval(this.countdown);
      };
      this.countdown = setInterval(tick, 250);
      tick();
    }
  }
}

const thought = (ms) => (ms === undefined ? "Thoughts" : `Thought for ${(ms / 1000).toFixed(1)} s`);

/** Tokens, rate and time to the first token, as far as they are known. */
function stats(known) {
  if (!known) return "";
  if (known.waiting !== undefined) return known.waiting < 1000 ? "" : `waiting for ${Math.floor(known.waiting / 1000)} s`;
  const parts = [`${known.tokens} ${known.tokens === 1 ? "token" : "tokens"}`];
  if (known.rate) parts.push(`${known.rate.toFixed(known.rate < 10 ? 2 : 1)} tokens/s`);
  parts.push(`first after ${(known.firstMs / 1000).toFixed(2)} s`);
  return parts.join(" · ");
}

/** Whether a key sends: Enter, where there is a keyboard that can also break lines with Shift. */
export function sends(event) {
  const touch = matchMedia("(pointer: coarse)").matches;
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch;
}

/** Makes a text area as high as its text. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
