// Stored prefixes as a tree: what many begin with is told once. Pure.

const MIN_SHARED = 16; // characters; a shorter beginning is not worth a level

/**
 * Prefixes (`{text, tokens, ...}`) as nodes: `{text, prefix}` for one, `{text, children}` for a beginning that
 * several share. `text` is what a node adds to the one above it.
 */
export function fold(prefixes) {
  const sorted = [...prefixes].sort((a, b) => (a.text < b.text ? -1 : a.text > b.text ? 1 : a.tokens - b.tokens));
  return folded(sorted, 0);
}

function folded(sorted, depth) {
  const nodes = [];
  let at = 0;
  while (at < sorted.length) {
    const [end, shared] = groupAt(sorted, at, depth);
    const group = sorted.slice(at, end);
    if (group.length === 1) nodes.push(leaf(group[0], depth));
    else nodes.push({ text: group[0].text.slice(depth, shared), children: below(group, shared) });
    at = end;
  }
  return nodes;
}

const leaf = (prefix, depth) => ({ text: prefix.text.slice(depth), prefix });

/** Where the group that begins at `at` ends, and how many characters all of it share. */
function groupAt(sorted, at, depth) {
  let shared = sorted[at].text.length;
  let end = at + 1;
  for (; end < sorted.length; end += 1) {
    const n = common(sorted[at].text, sorted[end].text, shared);
    if (n - depth < MIN_SHARED) break;
    shared = n;
  }
  return [end, shared];
}

/** Those of a group whose text ends where it is shared are leaves; the rest is folded further. */
function below(group, shared) {
  const ended = group.filter(({ text }) => text.length === shared);
  return [...ended.map((prefix) => leaf(prefix, shared)), ...folded(group.slice(ended.length), shared)];
}

function common(a, b, most) {
  const n = Math.min(most, a.length, b.length);
  let at = 0;
  while (at < n && a[at] === b[at]) at += 1;
  return at;
}

/** What is stored below a node: `{tokens, bytes, hits, n}`; `tokens` is the longest. */
export function sumOf(node) {
  if (node.prefix) {
    const { tokens = 0, bytes = 0, hits = 0 } = node.prefix;
    return { tokens, bytes, hits, n: 1 };
  }
  return node.children.map(sumOf).reduce((a, b) => ({
    tokens: Math.max(a.tokens, b.tokens),
    bytes: a.bytes + b.bytes,
    hits: a.hits + b.hits,
    n: a.n + b.n,
  }));
}
