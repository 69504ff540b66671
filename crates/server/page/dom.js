// Making elements.

/** An element. Functions become listeners, booleans attributes that are there or not, strings text. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, click) {
  return h("button", { type: "button", class: "ghost", title: label, "aria-label": label, click }, icon(name));
}

const status = document.getElementById("status");

/** Lets screen readers say it. */
export function announce(text) {
  status.textContent = text;
}

/** Puts text on the clipboard, which pages over plain HTTP from other machines may not do directly. */
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = h("textarea", { class: "sr", readonly: true });
  area.value = text;
  document.body.append(area);
  const focused = document.activeElement;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!done) throw new Error("the browser does not allow it");
}

/** A button that copies what `text()` returns and says so. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    let outcome = "Copied";
    try {
      await copy(text());
      button.replaceChildren(icon("check"));
      setTimeout(() => button.replaceChildren(icon("copy")), 1500);
    } catch (error) {
      outcome = `Not copied: ${error.message}`;
    }
    announce(outcome);
  });
  return button;
}
