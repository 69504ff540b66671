// What stays in the browser: conversations in IndexedDB, preferences in localStorage.

const DATABASE = "hurtle";
const STORE = "conversations";

const promise = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

let database;

function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
  return promise(request);
}

async function store(mode) {
  database ??= open();
  return (await database).transaction(STORE, mode).objectStore(STORE);
}

export async function loadAll() {
  return promise((await store("readonly")).getAll());
}

/** Other tabs that show the same conversations. */
const tabs = new BroadcastChannel("hurtle");

export async function save(conversation) {
  await promise((await store("readwrite")).put(conversation));
  tabs.postMessage(conversation.id);
}

export async function remove(id) {
  await promise((await store("readwrite")).delete(id));
  tabs.postMessage(id);
}

/** Calls back when another tab has changed a conversation. */
export function onChange(callback) {
  tabs.onmessage = async ({ data: id }) => callback(id, await promise((await store("readonly")).get(id)));
}

/** A preference, or undefined. */
export function preference(name) {
  try {
    return localStorage.getItem(`hurtle.${name}`) ?? undefined;
  } catch {
    return undefined;
  }
}

export function setPreference(name, value) {
  try {
    if (value) localStorage.setItem(`hurtle.${name}`, value);
    else localStorage.removeItem(`hurtle.${name}`);
  } catch {
    // No storage: it holds until the page is closed.
  }
}
