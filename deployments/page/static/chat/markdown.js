// Markdown of replies as DOM nodes: never through HTML, so nothing in a reply can become more than text,
// and links lead to http, https and mailto alone. The common part of CommonMark and tables.

import { copyButton, el } from "../dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const rendered = new WeakMap(); // container -> the source of each of its children

/** Shows `text` in `container`. Of a text that grows, only the blocks that changed are made again. */
export function render(container, text) {
  const sources = blocks(text.split("\n"));
  const old = rendered.get(container) || [];
  sources.forEach((lines, index) => {
    const source = lines.join("\n");
    if (old[index] === source) return;
    const node = block(lines, 0);
    if (index < old.length) container.children[index].replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > sources.length) container.lastChild.remove();
  rendered.set(
    container,
    sources.map((lines) => lines.join("\n")),
  );
}

/** Lines as blocks: each a list of the lines that are one paragraph, fence, list, table, quote or heading. */
export function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const end = endOf(lines, at);
    found.push(lines.slice(at, end));
    at = end;
  }
  return found;
}

function endOf(lines, at) {
  const fence = FENCE.exec(lines[at]);
  if (fence) return endOfFence(lines, at, fence[1]);
  if (HEADING.test(lines[at]) || RULE.test(lines[at])) return at + 1;
  if (QUOTE.test(lines[at])) return lastWhile(lines, at, (line) => line.trim() !== "");
  if (ITEM.test(lines[at])) return endOfList(lines, at);
  if (isTable(lines, at)) return lastWhile(lines, at + 1, (line) => line.includes("|"));
  return lastWhile(lines, at, (line, next) => line.trim() !== "" && !startsBlock(lines, next));
}

function lastWhile(lines, at, holds) {
  let end = at + 1;
  while (end < lines.length && holds(lines[end], end)) end += 1;
  return end;
}

function endOfFence(lines, at, mark) {
  for (let end = at + 1; end < lines.length; end += 1) {
    const line = lines[end].trim();
    if (line.length >= mark.length && line === mark[0].repeat(line.length)) return end + 1;
  }
  return lines.length; // it is still being written
}

function endOfList(lines, at) {
  const isNumbered = numbered(lines[at]);
  let end = at + 1;
  while (end < lines.length) {
    const line = lines[end];
    if (!line.trim()) {
      const next = lines[end + 1];
      if (next === undefined || !(/^\s{2,}\S/.test(next) || (ITEM.test(next) && numbered(next) === isNumbered)))
        return end;
    } else if (!/^\s/.test(line) && startsBlock(lines, end) && !(ITEM.test(line) && numbered(line) === isNumbered)) {
      return end;
    }
    end += 1;
  }
  return end;
}

const numbered = (line) => /^\s*\d/.test(line);
const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length && DIVIDER.test(lines[at + 1]);

function startsBlock(lines, at) {
  const line = lines[at];
  return (
    FENCE.test(line) ||
    HEADING.test(line) ||
    RULE.test(line) ||
    QUOTE.test(line) ||
    ITEM.test(line) ||
    isTable(lines, at)
  );
}

function block(lines, depth) {
  const fence = FENCE.exec(lines[0]);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(lines[0]);
  if (heading) return el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2]));
  if (RULE.test(lines[0])) return el("hr");
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(lines[0]))
      return el(
        "blockquote",
        {},
        inner(
          lines.map((line) => line.replace(QUOTE, "")),
          depth,
        ),
      );
    if (ITEM.test(lines[0])) return list(lines, depth);
  }
  if (isTable(lines, 0)) return table(lines);
  return el("p", {}, inline(lines.join("\n")));
}

const inner = (lines, depth) => blocks(lines).map((found) => block(found, depth + 1));

function code(lines, [, mark, language]) {
  const last = lines.length > 1 && lines.at(-1).trim().startsWith(mark) ? -1 : undefined;
  const text = lines.slice(1, last).join("\n");
  const copy = copyButton(() => text, { class: "quiet copy" });
  const head = el("div", { class: "code-head" }, el("span", {}, language.trim().split(/\s/)[0] || "text"), copy);
  return el("div", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, text)));
}

function list(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const start = ITEM.exec(line);
    if (start && start[1].length <= indent.length + 1) items.push([line.slice(start[0].length)]);
    else items.at(-1).push(line.replace(/^( {1,4}|\t)/, ""));
  }
  const loose = lines.some((line) => !line.trim());
  const nodes = items.map((item) => el("li", {}, loose ? inner(item, depth) : tight(item, depth)));
  return numbered(mark) ? el("ol", { start: Number.parseInt(mark, 10) }, nodes) : el("ul", {}, nodes);
}

/** The first paragraph of an item without space around it. */
function tight(item, depth) {
  return blocks(item).map((found, index) => {
    const node = block(found, depth + 1);
    return index === 0 && node.tagName === "P" ? [...node.childNodes] : node;
  });
}

function cells(line) {
  return line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => cell.trim());
}

function table(lines) {
  const head = cells(lines[0]);
  const row = (tag, texts) =>
    el(
      "tr",
      {},
      head.map((_, index) => el(tag, {}, inline(texts[index] || ""))),
    );
  const body = lines.slice(2).map((line) => row("td", cells(line)));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, body)));
}
