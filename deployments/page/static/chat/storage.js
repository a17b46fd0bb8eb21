// Conversations in the browser's local storage: one entry each, so that two tabs do not overwrite each other's.
// At most `MAX_CONVERSATIONS`, and what the browser's quota allows: the ones that were used longest ago go first.
// One that is so large that all others would have to go is not kept.

const PREFIX = "erllama.conversation.";
const SETTINGS = "erllama.settings";
const MAX_CONVERSATIONS = 200;
const MAX_CHARS = 2_000_000; // of one conversation; browsers keep some five million for a site

function keys() {
  return Array.from({ length: localStorage.length }, (_, index) => localStorage.key(index)).filter((key) =>
    key.startsWith(PREFIX),
  );
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // not ours, or cut off: as if it were not there
  }
}

/** All of them as `{id, title, updated}`, the newest first. */
export function list() {
  const found = keys()
    .map(read)
    .filter((kept) => kept?.id);
  return found.map(({ id, title, updated }) => ({ id, title, updated })).sort((a, b) => b.updated - a.updated);
}

/** One of them, or null. A reply that was being made when its page went away was lost. */
export function load(id) {
  const kept = read(PREFIX + id);
  if (!kept?.messages || !kept.selected) return null;
  for (const message of Object.values(kept.messages)) {
    if (message.state === "streaming") message.state = "lost";
  }
  return kept;
}

/** Whether there was room for it, older ones having made way. */
export function save(conversation) {
  const text = JSON.stringify(conversation);
  if (text.length > MAX_CHARS) return false;
  while (!put(PREFIX + conversation.id, text)) {
    const oldest = list().findLast(({ id }) => id !== conversation.id);
    if (!oldest) return false;
    remove(oldest.id);
  }
  if (keys().length > MAX_CONVERSATIONS) for (const { id } of list().slice(MAX_CONVERSATIONS)) remove(id);
  return true;
}

/** Whether the quota allowed it. */
function put(key, text) {
  try {
    localStorage.setItem(key, text);
    return true;
  } catch {
    return false;
  }
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export const loadSettings = () => read(SETTINGS) || {};

/** Where the quota is used up by conversations, the settings hold for this page alone. */
export const saveSettings = (settings) => put(SETTINGS, JSON.stringify(settings));
