// What stands inside of a line of Markdown: code, emphasis, links. One pass from left to right; how far and how
// often the other end of a mark is looked for is bounded, so that no text takes long.

import { el } from "../dom.js";

const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const BARE_LINK = /^https?:\/\/[^\s<>"')\]]+/i;
const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const MAX_DEPTH = 6;
const MAX_LOOK = 4000; // characters to the other end of a mark
const MAX_ENDS = 40; // places that may be that end

/** Nodes and strings for a text. */
export function inline(text, depth = 0) {
  const out = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const found = special(text, at, depth);
    if (found) {
      if (plain) out.push(plain);
      plain = "";
      out.push(found.node);
      at = found.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  if (plain) out.push(plain);
  return out;
}

function special(text, at, depth) {
  const char = text[at];
  if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] || "")) return { node: text[at + 1], end: at + 2 };
  if (char === "\n") return / {2}$/.test(text.slice(Math.max(0, at - 2), at)) ? { node: el("br"), end: at + 1 } : null;
  if (char === "`") return codeSpan(text, at);
  if (char === "h" || char === "H") return bareLink(text, at);
  if (depth >= MAX_DEPTH) return null;
  if (char === "[" || (char === "!" && text[at + 1] === "[")) return link(text, at, depth);
  if (char === "*" || char === "_" || char === "~") return emphasis(text, at, depth);
  return null;
}

function find(text, mark, from) {
  const end = text.indexOf(mark, from);
  return end - from > MAX_LOOK ? -1 : end;
}

function codeSpan(text, at) {
  const mark = /^`+/.exec(text.slice(at, at + 16))[0];
  const end = find(text, mark, at + mark.length);
  if (end < 0) return { node: mark, end: at + mark.length };
  return { node: el("code", {}, text.slice(at + mark.length, end).replace(/^ (.+) $/, "$1")), end: end + mark.length };
}

const anchor = (href, children) => el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);

function bareLink(text, at) {
  if (at > 0 && /\w/.test(text[at - 1])) return null;
  const found = BARE_LINK.exec(text.slice(at, at + 2000));
  if (!found) return null;
  const href = found[0].replace(/[.,;:!?]+$/, "");
  return { node: anchor(href, href), end: at + href.length };
}

/** A picture becomes a link: the page loads nothing from elsewhere. */
function link(text, at, depth) {
  const open = text[at] === "!" ? at + 1 : at;
  const middle = find(text, "](", open);
  const end = middle < 0 ? -1 : find(text, ")", middle + 2);
  if (end < 0 || text.slice(open + 1, middle).includes("\n\n")) return null;
  const href = text
    .slice(middle + 2, end)
    .trim()
    .split(/\s/)[0];
  const label = text.slice(open + 1, middle);
  const children = inline(label || href, depth + 1);
  return { node: SAFE_LINK.test(href) ? anchor(href, children) : el("span", {}, children), end: end + 1 };
}

function emphasis(text, at, depth) {
  const [mark, tag] = MARKS.find(([text_]) => text.startsWith(text_, at)) || [];
  if (!mark) return null;
  const start = at + mark.length;
  if (/\s/.test(text[start] ?? " ") || (mark[0] === "_" && /\w/.test(text[at - 1] || ""))) return null;
  const end = closing(text, mark, start);
  if (end <= start) return null;
  return { node: el(tag, {}, inline(text.slice(start, end), depth + 1)), end: end + mark.length };
}

function closing(text, mark, start) {
  let end = find(text, mark, start);
  for (let n = 0; end >= 0 && n < MAX_ENDS; n += 1, end = find(text, mark, end + 1)) {
    const isDouble = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
    const isWord = mark[0] === "_" && /\w/.test(text[end + mark.length] || "");
    if (!/\s/.test(text[end - 1]) && !isDouble && !isWord) return end;
  }
  return -1;
}
