// Conversations in the browser's local storage: one entry each, so that two tabs do not overwrite each other's.
// At most `MAX_CONVERSATIONS`, and what the browser's quota allows: the ones that were used longest ago go first.

const PREFIX = "erllama.conversation.";
const SETTINGS = "erllama.settings";
const MAX_CONVERSATIONS = 200;

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // not ours, or cut off: as if it were not there
  }
}

/** All of them as `{id, title, updated}`, the newest first. */
export function list() {
  const found = [];
  for (let index = 0; index < localStorage.length; index += 1) {
    const key = localStorage.key(index);
    if (!key.startsWith(PREFIX)) continue;
    const kept = read(key);
    if (kept?.id) found.push({ id: kept.id, title: kept.title, updated: kept.updated });
  }
  return found.sort((a, b) => b.updated - a.updated);
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

/** Whether there was room for it, others having made way. */
export function save(conversation) {
  const text = JSON.stringify(conversation);
  for (;;) {
    try {
      localStorage.setItem(PREFIX + conversation.id, text);
      break;
    } catch {
      const oldest = list()
        .filter(({ id }) => id !== conversation.id)
        .at(-1);
      if (!oldest) return false;
      remove(oldest.id);
    }
  }
  for (const { id } of list().slice(MAX_CONVERSATIONS)) remove(id);
  return true;
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export const loadSettings = () => read(SETTINGS) || {};

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // the quota is used up by conversations: the settings hold for this page alone
  }
}
