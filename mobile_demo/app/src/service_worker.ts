/**
 * Keeps the page and the runtime, so that they start without a network (draft model and tokenizer are kept by the SDK),
 * and adds the headers that isolate the page, which threads in WASM need, where the host does not.
 */

/// <reference lib="webworker" />

declare const self: ServiceWorkerGlobalScope;
/** Set when the page is built: its files, and a hash over all of them. */
declare const FILES: readonly string[];
declare const VERSION: string;

const SHELL_CACHE = `pilotfish-shell-${VERSION}`;
const ISOLATION: Readonly<Record<string, string>> = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
  "cross-origin-resource-policy": "same-origin",
};

self.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(SHELL_CACHE);
      await cache.addAll(FILES.map((file) => new URL(file, self.registration.scope).href));
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      const names = await caches.keys();
      const old = names.filter((name) => name.startsWith("pilotfish-shell-") && name !== SHELL_CACHE);
      await Promise.all(old.map((name) => caches.delete(name)));
      await self.clients.claim();
    })(),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== self.location.origin) return;
  if (request.mode === "navigate") event.respondWith(page(request));
  else if (request.url.startsWith(self.registration.scope)) event.respondWith(shell(request));
});

/** The page itself: the newest there is, or the kept one without a network. */
async function page(request: Request): Promise<Response> {
  try {
    return isolated(await fetch(request));
  } catch (error) {
    const kept = await caches.match(self.registration.scope, { cacheName: SHELL_CACHE });
    if (kept === undefined) throw error;
    return isolated(kept);
  }
}

/** Files of the page: those of this version are kept, whatever the network says. */
async function shell(request: Request): Promise<Response> {
  const kept = await caches.match(request, { cacheName: SHELL_CACHE, ignoreSearch: true });
  return isolated(kept ?? (await fetch(request)));
}

function isolated(answer: Response): Response {
  if (answer.status === 0 || answer.type === "opaqueredirect" || answer.redirected) return answer;
  if (Object.keys(ISOLATION).every((name) => answer.headers.has(name))) return answer;
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(ISOLATION)) if (!headers.has(name)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}

export {}; // a module, so that what it declares is its own
