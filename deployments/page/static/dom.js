// Builds DOM nodes. Text always becomes text nodes: nothing in this page is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

/** An element; an attribute `onclick` is a listener, one that is false, null or undefined is left out. */
export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function button(label, onclick, attributes) {
  return el("button", { type: "button", onclick, ...attributes }, label);
}

/** A label and its control, in the order of reading. */
export function field(label, control, attributes) {
  return el("label", { class: "field", ...attributes }, el("span", {}, label), control);
}

/** Tells a screen reader, once it is idle. Never called per token. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Replaces the children of `node`, and keeps the focus where it was if its `data-focus` is there again. */
export function redraw(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  node.replaceChildren(...children.flat(Infinity).filter((child) => child || child === 0));
  if (focused) node.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

/** Hands text to the user as a file. */
export function download(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = el("a", { href: url, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(text, attributes) {
  const control = button("Copy", () => copy(text()).then(told, told), attributes);
  const told = (done) => {
    control.textContent = done === true ? "Copied" : "Not copied";
    setTimeout(() => (control.textContent = "Copy"), 1500);
  };
  return control;
}

async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return true;
  }
  const area = el("textarea", { class: "unseen", value: text }); // plain HTTP has no clipboard but the user's own
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** Asks and resolves to what `build(close)` closes with, or null when the dialog is left. */
export function dialog(label, build) {
  return new Promise((resolve) => {
    const box = el("dialog", { "aria-label": label });
    let result = null;
    const close = (value) => {
      result = value;
      box.close();
    };
    box.append(...[build(close)].flat(Infinity));
    box.addEventListener("close", () => {
      box.remove();
      resolve(result);
    });
    document.body.append(box);
    box.showModal();
  });
}
